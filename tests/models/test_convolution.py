"""The convolutional model: sizes, training in three stages, a precision that stays non-negative, and its geometry."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch

import oddity
from oddity.models.conv_rbf import ConvRBFPrecision
from oddity.models.layers import ConvDecoder, ConvEncoder
from oddity.models.rbf import RBFPrecision, WeightLikelihood
from oddity.models.training import fit_sigma_network, fit_vae
from oddity.models.vae import Architecture

TINY = {"architecture": "conv", "channels": (3, 4), "hidden": (8, 4), "epochs": 4, "variance_epochs": 4, "n_centres": 4}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(n=120, height=9, width=6):
    """Images of a bright spot that moves: a surface of two dimensions, in [0, 1]."""
    at = torch.rand(n, 2, 1, 1, generator=rng(1)) * torch.tensor([height, width])[:, None, None]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return torch.exp(-((rows - at[:, 0]) ** 2 + (columns - at[:, 1]) ** 2) / 4)


def same(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def trained():
    X, heard = blobs(), []
    settings = {**TINY, "epochs": 60, "variance_epochs": 25, "n_centres": 12, "channels": (8, 8), "hidden": (16, 16)}
    return X, fit_vae(X, **settings, batch_size=16, lr=5e-3, progress=lambda *event: heard.append(event)), heard


class TestLayers:
    @pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 13])
    @pytest.mark.parametrize("width", [1, 4, 7, 10])
    @pytest.mark.parametrize("depth", [1, 2, 3])
    def test_every_size_comes_back(self, height, width, depth):
        shape, channels = (2, height, width), (3,) * depth
        encoder, decoder = ConvEncoder(shape, 2, channels, (4,)), ConvDecoder(2, (4,), channels, shape)
        x = torch.rand(5, 2 * height * width, generator=rng())
        mean, std = encoder(x)
        assert mean.shape == std.shape == (5, 2)
        assert decoder(mean).shape == x.shape

    def test_leading_shapes(self):
        vae = Architecture(12, 2, (4,), image_shape=(1, 3, 4), channels=(2,)).build().eval().requires_grad_(False)
        x = torch.rand(2, 5, 12, generator=rng())
        torch.testing.assert_close(vae(x), vae(x.reshape(10, 12)).reshape(2, 5, 12))
        torch.testing.assert_close(vae(x)[1, 3], vae(x[1, 3]))

    def test_images_and_rows_are_the_same_to_the_model(self):
        x = torch.rand(5, 12, generator=rng())
        grey = Architecture(12, 2, (4,), image_shape=(1, 3, 4), channels=(2,)).build()
        colour = Architecture(12, 2, (4,), image_shape=(3, 2, 2), channels=(2,)).build()
        for vae, shapes in ((grey, [(5, 3, 4), (5, 1, 3, 4)]), (colour, [(5, 3, 2, 2)])):
            for shape in shapes:
                assert torch.equal(vae.encode(x.reshape(shape)), vae.encode(x))
        with pytest.raises(ValueError, match=r"takes \(\*, 12\) or images \(\*, 3, 2, 2\)"):
            colour.encode(x.reshape(5, 3, 4))


class TestPrecision:
    def network(self, shape=(1, 7, 6), channels=(4, 3), **settings):
        z = torch.randn(80, 2, generator=rng(2))
        return z, ConvRBFPrecision.from_codes(z, shape, channels, n_centres=6, **settings)

    def problem(self, rbf, z, min_std=1e-3):
        problem = WeightLikelihood(rbf, min_std)
        noise = torch.randn(len(z), rbf.out_features, generator=rng(3))
        problem.add(z, (noise * (0.2 + z.norm(dim=1, keepdim=True))).square())
        return problem

    def test_the_precision_is_that_of_bumps_through_transposed_convolutions(self):
        z, rbf = self.network()
        maps = torch.einsum("nk,kchw->nchw", rbf.activations(z), rbf.coarse)
        for kernel, size in zip(rbf.filters, [(4, 3), (7, 6)], strict=True):
            # each output pixel, by hand: the sum over the maps of what the kernel spreads there
            out = torch.zeros(len(z), kernel.shape[1], *size)
            odd = [s % 2 for s in size]
            for i in range(maps.shape[2]):
                for j in range(maps.shape[3]):
                    for u in range(4):
                        for v in range(4):
                            row, column = 2 * i + u - 1 - odd[0], 2 * j + v - 1 - odd[1]
                            if 0 <= row < size[0] and 0 <= column < size[1]:
                                out[:, :, row, column] += maps[:, :, i, j] @ kernel[:, :, u, v]
            maps = out
        torch.testing.assert_close(rbf.precision(z), maps.flatten(1) + rbf.zeta)

    def test_no_update_lowers_the_likelihood_or_makes_a_weight_negative(self):
        z, rbf = self.network()
        values = []
        for _, value in self.problem(rbf, z).climb(30):
            values.append(value)
            assert all(bool((p > 0).all()) for p in rbf.parameters())  # false for NaN too
            assert bool((rbf.weight >= 0).all())
        assert all(late >= early - 1e-6 for early, late in pairwise(values))
        assert values[-1] > values[0] + 1

    def test_it_comes_near_the_plain_network_that_it_is_a_part_of(self):
        """Its weights are some of those of a plain network, which is hence the better on what both were fitted to."""
        z, rbf = self.network(channels=(8, 8))
        plain = RBFPrecision(rbf.centres, rbf.bandwidths, rbf.out_features)
        (*_, (_, own)), (*_, (_, best)) = (self.problem(network, z).climb(60) for network in (rbf, plain))
        constant = self.problem(plain, z)
        constant.start()
        plain.begin(torch.full_like(plain.weight, float(plain.weight.detach().mean())))
        assert own < best
        assert best - own < 0.5 * (best - constant.step())

    def test_weights_that_reach_no_pixel_stay_finite(self):
        z, rbf = self.network(shape=(1, 5, 3))
        for _ in self.problem(rbf, z).climb(3):
            pass
        assert all(bool(p.isfinite().all()) for p in rbf.parameters())

    def test_no_bump_promises_more_than_the_noise_allows(self):
        z, rbf = self.network()
        problem = WeightLikelihood(rbf, 0.1)
        problem.add(z, torch.zeros(len(z), rbf.out_features))
        for _ in problem.climb(10):
            assert float(rbf.weight.max()) <= 0.1**-2 * (1 + 1e-6)

    def test_the_weight_follows_its_factors(self):
        z, rbf = self.network()
        for _ in self.problem(rbf, z).climb(3):
            pass
        twin, wide = copy.deepcopy(rbf), copy.deepcopy(rbf).double()
        assert torch.equal(twin.weight, rbf.weight)
        assert wide.weight.dtype == torch.float64
        assert not torch.equal(wide.weight, rbf.weight.double())  # not the rounded one
        torch.testing.assert_close(wide.weight.float(), rbf.weight)
        assert "weight" not in rbf.state_dict()
        _, other = self.network(seed=1)
        assert not torch.equal(other.weight, rbf.weight)
        other.load_state_dict(rbf.state_dict())
        assert torch.equal(other.weight, rbf.weight)

    def test_global_random_state(self):
        before = torch.get_rng_state()
        self.network()
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:the decoder's mean is the same:RuntimeWarning")  # of noise, after so few epochs
class TestFit:
    def test_three_stages(self, trained):
        X, vae, heard = trained
        assert [event[0] for event in heard] == ["mean"] * 60 + ["centres"] + ["precision"] * 25
        mean = [event[3] for event in heard if event[0] == "mean"]
        precision = [event[3] for event in heard if event[0] == "precision"]
        assert mean[-1] > mean[20] + 1
        assert precision[-1] > precision[0]
        assert not vae.training
        assert not any(p.requires_grad for p in vae.parameters())
        assert vae.image_shape == (1, 9, 6)
        rows = X.flatten(1)
        assert (vae(X) - rows).square().mean() < 0.3 * rows.var()

    def test_std_grows_away_from_the_data_and_stays_within_its_bounds(self, trained):
        X, vae, _ = trained
        z = vae.encode(X)
        limit = float(vae.decoder.scale.zeta[0]) ** -0.5
        angle = torch.linspace(0, 2 * torch.pi, 17)[:-1]
        ways = torch.stack([angle.cos(), angle.sin()], 1)
        farthest = float((z - z.mean(0)).norm(dim=1).max())
        rays = z.mean(0) + farthest * torch.linspace(1.5, 30, 60)[:, None, None] * ways
        std = vae.decoder.std(rays).mean(-1)  # (60, 16)
        assert bool((std.diff(dim=0) > -1e-4).all())  # beyond the data it only grows
        torch.testing.assert_close(std[-1], torch.full((16,), limit))
        assert float(vae.decoder.std(z).mean()) < limit / 5
        assert bool((vae.decoder.scale.weight >= 0).all())
        assert vae.decoder.scale.wall().crossing_cost > 0
        far = 1e6 * ways
        assert bool(vae.decoder.std(far).isfinite().all())

    def test_its_metric_is_in_closed_form_and_its_geodesics_converge(self, trained):
        X, vae, _ = trained
        M, z = oddity.expected_metric(vae.decoder), vae.encode(X)
        assert [part.differential.mode for part in M.parts] == ["closed form", "closed form"]
        J = [torch.autograd.functional.jacobian(f, z[0].double()) for f in parts_in_double(vae)]
        torch.testing.assert_close(M.metric(z[0]), sum(A.T @ A for A in J).float(), rtol=1e-4, atol=1e-4)
        g = M.geodesic(z[:6], z[6:12], init=oddity.Roadmap(M, z))
        assert g.converged.all(), g.why
        v = M.log(z[:1], z[6:7])
        torch.testing.assert_close(M.exp(z[:1], v), z[6:7], rtol=1e-2, atol=1e-2)

    def test_uncertainty_of_ones_own_keeps_the_closed_form(self, trained):
        X, vae, _ = trained
        uncertain = oddity.add_uncertainty(vae.decoder.mean_net, vae.encode(X), X, epochs=2, n_centres=4)
        M = oddity.expected_metric(uncertain)
        assert M.metric(vae.encode(X)).isfinite().all()
        assert [part.differential.mode for part in M.parts] == ["closed form", "closed form"]

    def test_elbo_sample_and_likelihood(self, trained):
        X, vae, _ = trained
        assert vae.sample(7, generator=rng()).shape == (7, 54)
        own = vae.log_likelihood(X[:20], 500, rng()).mean()
        assert own > vae.log_likelihood(X[:20].flip(-1), 500, rng()).mean()
        assert vae.elbo(X, rng()).shape == (120,)

    def test_seed_decides_and_image_or_row_does_not(self):
        X = torch.rand(40, 2, 5, 3, generator=rng())
        one, two, other = (fit_vae(X, **TINY, seed=seed) for seed in (1, 1, 2))
        assert same(one, two)
        assert not same(one, other)
        square = torch.rand(40, 25, generator=rng())
        assert same(fit_vae(square, **TINY), fit_vae(square.reshape(40, 1, 5, 5).numpy(), **TINY))

    def test_a_sigma_network_beside_it(self):
        X = torch.rand(40, 5, 3, generator=rng())
        vae = fit_vae(X, **TINY)
        baseline = fit_sigma_network(vae, X, epochs=1)
        assert baseline.decoder.std(vae.encode(X)).shape == (40, 15)
        assert Architecture.of(baseline).image_shape == (1, 5, 3)

    @pytest.mark.parametrize("where", [("mean", 3), ("precision", 2)])
    def test_a_resumed_run_repeats_the_unbroken_one(self, tmp_path, where):
        class StopError(Exception):
            pass

        def stop(stage, epoch, *_):
            if (stage, epoch) == where:
                raise StopError

        X = torch.rand(40, 5, 3, generator=rng())
        keeping = {"checkpoint": tmp_path / "run", "checkpoint_every": 1}
        with pytest.raises(StopError):
            fit_vae(X, **TINY, **keeping, progress=stop)
        resumed = fit_vae(X, **TINY, **keeping, resume=True)
        assert same(resumed, fit_vae(X, **TINY))
        with pytest.raises(ValueError, match="made with channels="):
            fit_vae(X, **{**TINY, "channels": (3, 5)}, **keeping, resume=True)

    def test_saved_and_loaded(self, trained, tmp_path):
        X, vae, _ = trained
        loaded = oddity.load_model(oddity.save_model(tmp_path / "m", vae)).vae
        assert same(loaded, vae)
        assert torch.equal(loaded.decoder.std(vae.encode(X)), vae.decoder.std(vae.encode(X)))

    @pytest.mark.parametrize(
        ("X", "settings", "message"),
        [
            (np.zeros((5, 12)), {}, "rows of 12 numbers, which are no square image"),
            (np.zeros((5, 28, 28, 3)), {}, "last axis looks like that of the channels"),
            (np.zeros(5), {}, r"pass images \(n, height, width\)"),
            (np.zeros((5, 1, 1, 2, 2)), {}, r"pass images \(n, height, width\)"),
            (np.zeros((5, 4, 4)), {"channels": ()}, "at least one convolution"),
            (np.zeros((5, 4, 4)), {"channels": (4, 0)}, r"channels=\(4, 0\)"),
            (np.zeros((5, 4, 4)), {"architecture": "transformer"}, "choose 'dense' or 'conv'"),
            (np.zeros((5, 4, 4)), {"architecture": "dense"}, "images flattened; architecture='conv' takes images"),
        ],
    )
    def test_misuse(self, X, settings, message):
        with pytest.raises(ValueError, match=message):
            fit_vae(X, **{**TINY, **settings})


def parts_in_double(vae):
    decoder = copy.deepcopy(vae.decoder).double()
    return decoder.mean, decoder.std
