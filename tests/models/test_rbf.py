import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from oddity.models.rbf import DEFAULT_ZETA, RBFPrecision, WeightLikelihood, bandwidths, predict_wall


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def a_network(d=2, K=5, D=7, dtype=torch.float64, zeta=DEFAULT_ZETA):
    g = rng(1)
    rbf = RBFPrecision(
        torch.randn(K, d, generator=g, dtype=dtype),
        0.5 + torch.rand(K, generator=g, dtype=dtype),
        D,
        zeta=zeta,
    )
    rbf.weight.data = 20 * torch.rand(D, K, generator=g, dtype=dtype)
    return rbf.requires_grad_(False)


def test_formula_by_hand():
    rbf = RBFPrecision(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.5, 0.25]), 1, zeta=0.1)
    rbf.weight.data = torch.tensor([[3.0, 4.0]])
    beta = 3 * math.exp(-0.5 * 1) + 4 * math.exp(-0.25 * 4) + 0.1
    z = torch.zeros(1, 2)
    assert rbf.precision(z).item() == pytest.approx(beta, rel=1e-6)
    assert rbf.std(z).item() == pytest.approx(beta**-0.5, rel=1e-6)


def test_calling_the_module_gives_the_standard_deviation():
    rbf, z = a_network(), torch.randn(4, 2, generator=rng(), dtype=torch.float64)
    assert torch.equal(rbf(z), rbf.std(z))
    torch.testing.assert_close(rbf(z), rbf.precision(z) ** -0.5)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1, 4)])
def test_leading_shapes_and_rows(shape):
    rbf = a_network()
    z = torch.randn(*shape, 2, generator=rng(), dtype=torch.float64)
    assert rbf.activations(z).shape == (*shape, 5)
    assert rbf.std(z).shape == (*shape, 7)
    assert rbf.std_jacobian(z).shape == (*shape, 7, 2)
    row = z.reshape(-1, 2)[-1]
    torch.testing.assert_close(rbf.std(z).reshape(-1, 7)[-1], rbf.std(row))
    torch.testing.assert_close(rbf.std_jacobian(z).reshape(-1, 7, 2)[-1], rbf.std_jacobian(row))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_jacobian_equals_autodiff_near_and_far(dtype, d):
    rbf = a_network(d=d, dtype=dtype)
    near = torch.randn(8, d, generator=rng(), dtype=dtype)
    for z in [*near, *(5 * near), *(50 * near)]:
        expected = torch.autograd.functional.jacobian(rbf.std, z)
        torch.testing.assert_close(rbf.std_jacobian(z), expected, rtol=2e-5, atol=1e-12)


def test_dtype_follows_the_input():
    for dtype in (torch.float32, torch.float64):
        z = torch.zeros(3, 2, dtype=dtype)
        assert a_network(dtype=dtype).std(z).dtype == dtype


def test_std_grows_away_from_the_codes_and_stays_below_its_limit():
    z = torch.randn(200, 2, generator=rng())
    rbf = RBFPrecision.from_codes(z, 3, n_centres=8).requires_grad_(False)
    rbf.weight.mul_(50)
    radii = torch.linspace(3.5, 60, 60)
    ray = radii[:, None] * torch.tensor([0.6, 0.8])
    std = rbf.std(ray)
    assert bool((std.diff(dim=0) >= 0).all())
    assert bool((std <= DEFAULT_ZETA**-0.5 * (1 + 1e-6)).all())
    assert std[-1, 0].item() == pytest.approx(DEFAULT_ZETA**-0.5, rel=1e-6)
    assert std[0, 0] > rbf.std(z).mean()


def test_nothing_is_subnormal_far_away():
    rbf = a_network(dtype=torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    ray = torch.linspace(0, 100, 4001)[:, None] * torch.tensor([0.6, 0.8])
    v = rbf.activations(ray)
    J = rbf.std_jacobian(ray)
    for values in (v, v.square(), v[:, None] * rbf.weight, J):
        assert not bool(((values != 0) & (values.abs() < tiny)).any())


class TestBandwidths:
    def test_mean_distance_not_mean_square_by_hand(self):
        z = torch.tensor([[0.0, 0.0], [6.0, 0.0], [10.0, 0.0], [10.0, 2.0]], dtype=torch.float64)
        centres = torch.tensor([[2.0, 0.0], [10.0, 1.0]], dtype=torch.float64)
        found = bandwidths(z, centres, torch.tensor([0, 0, 1, 1]), a=2.0)
        # distances 2 and 4, mean 3 (the root mean square would be 3.16); then 1 and 1, mean 1
        expected = torch.tensor([0.5 / (2 * 3) ** 2, 0.5 / (2 * 1) ** 2], dtype=torch.float64)
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize(("radius", "expected"), [(0.05, 50.0), (1.0, 0.125)])
    def test_unit_is_inverse_square(self, radius, expected):
        angle = torch.linspace(0, 2 * math.pi, 9, dtype=torch.float64)[:-1]
        z = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
        found = bandwidths(z, torch.zeros(1, 2).double(), torch.zeros(8, dtype=torch.long), a=2.0)
        assert found.item() == pytest.approx(expected)

    def test_empty_and_lone_clusters_take_the_typical_radius(self):
        z = torch.tensor([[-1.0], [1.0], [9.0], [11.0], [50.0]])
        centres = torch.tensor([[0.0], [10.0], [50.0], [70.0]])
        found = bandwidths(z, centres, torch.tensor([0, 0, 1, 1, 2]), a=1.0)
        torch.testing.assert_close(found, torch.full((4,), 0.5))

    def test_tiny_cluster_is_raised(self):
        z = torch.tensor([[-1.0], [1.0], [9.0], [11.0], [50.0], [50.001]])
        centres = torch.tensor([[0.0], [10.0], [50.0005]])
        found = bandwidths(z, centres, torch.tensor([0, 0, 1, 1, 2, 2]), a=1.0)
        torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 50.0]))

    def test_all_equal_codes(self):
        found = bandwidths(torch.full((4, 2), 3.3), torch.full((1, 2), 3.3), torch.zeros(4).long(), a=2.0)
        assert found.tolist() == [0.125]

    def test_a_must_be_positive(self):
        with pytest.raises(ValueError, match="a=0"):
            bandwidths(torch.zeros(2, 1), torch.zeros(1, 1), torch.zeros(2).long(), a=0.0)


class TestFromCodes:
    def test_fewer_distinct_codes_than_centres(self):
        z = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
        rbf = RBFPrecision.from_codes(z, 2, n_centres=64)
        assert rbf.centres.shape == (3, 2)
        assert bool(rbf.bandwidths.isfinite().all())

    def test_all_equal(self):
        rbf = RBFPrecision.from_codes(torch.ones(10, 2), 2)
        assert rbf.centres.tolist() == [[1.0, 1.0]]
        assert bool(rbf.std(torch.ones(1, 2)).isfinite().all())

    def test_seed_decides_and_global_state_is_left_alone(self):
        z = torch.randn(100, 2, generator=rng())
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        one, two = (RBFPrecision.from_codes(z, 2, n_centres=9, seed=3) for _ in range(2))
        assert torch.equal(one.centres, two.centres)
        assert torch.equal(torch.get_rng_state(), before)
        assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002

    @pytest.mark.parametrize("z", [torch.zeros(3), torch.zeros(0, 2), torch.tensor([[0.0, math.nan]])])
    def test_bad_codes(self, z):
        with pytest.raises(ValueError, match="pass finite codes"):
            RBFPrecision.from_codes(z, 2)

    def test_bad_count(self):
        with pytest.raises(ValueError, match="n_centres=0"):
            RBFPrecision.from_codes(torch.zeros(3, 2), 2, n_centres=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bandwidths": torch.ones(3)}, "pass \\(K, d\\) and \\(K,\\)"),
        ({"bandwidths": torch.tensor([1.0, 0.0])}, "bump 1 has bandwidth 0 .*positive and finite"),
        ({"centres": torch.tensor([[0.0, math.inf], [0.0, 0.0]])}, "positive and finite"),
        ({"zeta": 0.0}, "zeta=0.0"),
        ({"zeta": torch.ones(2)}, "3 outputs"),
        ({"out_features": 0}, "out_features=0"),
    ],
)
def test_constructor_checks(changes, message):
    arguments = {"centres": torch.zeros(2, 2), "bandwidths": torch.ones(2), "out_features": 3} | changes
    with pytest.raises(ValueError, match=message):
        RBFPrecision(**arguments)


class TestWall:
    @pytest.mark.parametrize(
        ("zeta", "cost", "peak"), [(1e-1, 86, 1.5e4), (1e-2, 277, 2.0e5), (1e-3, 883, 2.5e6), (1e-6, 28e3, 4.1e9)]
    )
    def test_published_figures(self, zeta, cost, peak):
        wall = predict_wall(zeta, 100.0, 2.0, 784)
        assert wall.crossing_cost == pytest.approx(cost, rel=0.02)
        assert wall.height == pytest.approx(peak, rel=0.05)

    @pytest.mark.parametrize("zeta", [1e-1, 1e-2, 1e-3])
    def test_against_the_network_itself(self, zeta):
        D, w, bandwidth = 784, 100.0, 2.0
        rbf = RBFPrecision(torch.zeros(1, 1).double(), torch.tensor([bandwidth]), D, zeta=zeta)
        rbf.weight.data.fill_(w)
        r = torch.linspace(0, 6, 4001, dtype=torch.float64)
        speed = rbf.std_jacobian(r[:, None])[..., 0].norm(dim=-1).detach()
        wall = rbf.wall()
        assert wall.crossing_cost == pytest.approx(torch.trapezoid(speed, r).item(), rel=1e-4)
        assert wall.radius == pytest.approx(r[speed.argmax()].item(), rel=0.05)
        assert wall.height == pytest.approx(speed.max().item() ** 2, rel=0.05)

    def test_checks(self):
        with pytest.raises(ValueError, match="no wall forms"):
            predict_wall(1.0, 1.0, 1.0, 1)
        with pytest.raises(ValueError, match="must be positive"):
            predict_wall(0.0, 1.0, 1.0, 1)


class TestWeightLikelihood:
    def problem(self, min_std=0.05, n=300, zeros=False):
        g = rng(2)
        z = torch.randn(n, 2, generator=g, dtype=torch.float64)
        true_std = 0.3 + z[:, :1].square() * torch.tensor([[0.2, 0.0, 1.0]], dtype=torch.float64)
        r2 = (true_std * torch.randn(n, 3, generator=g, dtype=torch.float64)).square()
        if zeros:
            r2[:, 1] = 0
        rbf = RBFPrecision.from_codes(z, 3, n_centres=6)
        problem = WeightLikelihood(rbf, min_std)
        problem.add(z[:100], r2[:100])
        problem.add(z[100:], r2[100:])
        return rbf, problem, z, r2 + min_std**2

    @staticmethod
    def value(rbf, z, r2):
        beta = rbf.precision(z)
        return (0.5 * (beta.log() - beta * r2 - math.log(2 * math.pi))).sum(-1).mean()

    def test_value_is_the_gaussian_log_likelihood(self):
        rbf, problem, z, r2 = self.problem()
        problem.start()
        expected = self.value(rbf, z, r2).item()
        assert problem.step() == pytest.approx(expected, rel=1e-12)

    def test_never_lower(self):
        _, problem, _, _ = self.problem()
        values = [problem.step() for _ in range(100)]  # from W = 1, far from good
        assert all(late >= early - 1e-12 for early, late in pairwise(values))
        assert values[-1] > values[0] + 0.1

    def test_reaches_the_optimum_of_a_bounded_quasi_newton_method(self):
        rbf, problem, z, r2 = self.problem()
        problem.start()
        for _ in range(1500):
            best = problem.step()

        def objective(flat):
            rbf.weight.data = torch.as_tensor(flat).reshape(3, 6).clone()
            rbf.weight.grad = None
            loss = -self.value(rbf, z, r2)
            loss.backward()
            return loss.item(), rbf.weight.grad.reshape(-1).numpy().copy()

        reached = rbf.weight.detach().clone()
        oracle = minimize(
            objective,
            np.full(18, 1.0),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * 18,
            options={"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-15, "gtol": 1e-10},
        )
        assert best == pytest.approx(-oracle.fun, abs=1e-6)
        rbf.weight.data = reached
        ours = rbf.precision(z)
        rbf.weight.data = torch.as_tensor(oracle.x).reshape(3, 6)
        torch.testing.assert_close(ours, rbf.precision(z), rtol=1e-2, atol=1e-3)

    def test_fifty_updates_suffice(self):
        _, problem, _, _ = self.problem()
        problem.start()
        values = [problem.step() for _ in range(1500)]
        assert values[50] - values[0] > 0.98 * (values[-1] - values[0])

    def test_weight_stays_non_negative_and_constant_output_is_capped(self):
        rbf, problem, z, _ = self.problem(zeros=True)
        problem.start()
        for _ in range(200):
            problem.step()
        assert bool((rbf.weight >= 0).all())
        constant = rbf.std(z)[:, 1]
        assert constant.min() > 0.8 * 0.05
        assert constant.median().item() == pytest.approx(0.05, rel=0.1)

    def test_recovers_a_constant_variance(self):
        g = rng(3)
        z = torch.randn(3000, 2, generator=g)
        rbf = RBFPrecision.from_codes(z, 1, n_centres=16)
        problem = WeightLikelihood(rbf, min_std=1e-3)
        problem.add(z, (0.5 * torch.randn(3000, 1, generator=g)).square())
        problem.start()
        for _ in range(50):
            problem.step()
        core = rbf.std(z[z.norm(dim=-1) < 1.5])
        assert core.mean().item() == pytest.approx(0.5, rel=0.05)

    def test_shares_of_several_processes_sum_to_the_whole(self):
        whole, problem, z, r2 = self.problem()
        twice = RBFPrecision(whole.centres, whole.bandwidths, 3)
        half = WeightLikelihood(twice, 0.05, reduce=lambda total: 2 * total)
        half.add(z, r2 - 0.05**2)  # two processes with the same share: the same optimum, the same mean value
        problem.start()
        half.start()
        for _ in range(5):
            assert problem.step() == pytest.approx(half.step(), rel=1e-10)
        torch.testing.assert_close(whole.weight, twice.weight)

    def test_centre_without_codes_promises_no_more_than_the_noise_allows(self):
        # the codes lie in a ring around the only centre: unbounded, its weight would be e^8 times larger
        rbf = RBFPrecision(torch.zeros(1, 2).double(), torch.tensor([2.0]), 1)
        angle = torch.linspace(0, 6, 50, dtype=torch.float64)
        problem = WeightLikelihood(rbf, min_std=0.1)
        problem.add(2 * torch.stack([angle.cos(), angle.sin()], dim=1), torch.zeros(50, 1).double())
        problem.start()
        values = [problem.step() for _ in range(30)]
        assert all(late >= early for early, late in pairwise(values))
        assert rbf.std(torch.zeros(1, 2).double()).item() == pytest.approx(0.1, rel=1e-3)

    def test_noise_must_be_positive(self):
        with pytest.raises(ValueError, match="min_std=0"):
            WeightLikelihood(a_network(), 0.0)


def test_expansion_agrees_with_automatic_derivatives() -> None:
    g = torch.Generator().manual_seed(0)
    rbf = RBFPrecision(torch.randn(5, 3, generator=g), torch.rand(5, generator=g) + 0.3, 7, zeta=0.05).double()
    with torch.no_grad():
        rbf.weight.copy_(torch.rand(7, 5, generator=g))
    z, w = torch.randn(4, 3, generator=g).double(), torch.randn(4, 7, generator=g).double()
    p, q = torch.randn(2, 2, 4, 3, generator=g).double()
    value, frame, bend, second = rbf.expand_std(z)
    torch.testing.assert_close(value, rbf.std(z))
    for n in range(4):
        J = torch.autograd.functional.jacobian(lambda x: rbf.std(x), z[n])
        H = torch.autograd.functional.hessian(lambda x, n=n: (w[n] * rbf.std(x)).sum(), z[n])
        torch.testing.assert_close(frame[:, n].T, J)
        torch.testing.assert_close(bend(w)[n], H)
        torch.testing.assert_close(
            (second(p, q)[:, n] * w[n]).sum(-1), torch.einsum("ki,ij,kj->k", p[:, n], H, q[:, n])
        )
