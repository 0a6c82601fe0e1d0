"""The laws that every geometry keeps, as a public test suite: ``check_manifold(M, z)``.

Run it on a manifold of your own; Oddity runs it on all of its own. Each law is a function of a manifold and a batch
of points, and raises :class:`AssertionError` with the law's name and the measured violation.
"""

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from oddity.geometry.manifold import Manifold
from oddity.numerics.ambient import door
from oddity.numerics.chain import ChainModel, doubled

__all__ = ["LAWS", "check_manifold"]

Law = Callable[[Manifold, Tensor], None]


@door
def check_manifold(M: Manifold, z: Tensor, laws: Iterable[str] | None = None) -> None:
    """Hold a manifold to the laws of Riemannian geometry and of this library.

    Parameters
    ----------
    M
        The manifold.
    z
        ``(N, d)``, N >= 3, points where the metric is smooth; laws about curves use short curves from these points.
        float64 gives sharp tests; in float32 the tolerances follow ``torch.finfo``.
    laws
        Names from :data:`LAWS`; default all.

    Raises
    ------
    AssertionError
        Naming the law that failed and by how much.
    ValueError
        If z is not ``(N, d)`` with N >= 3, or a law's name is unknown.

    Examples
    --------
    >>> import oddity
    >>> z = 0.3 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> check_manifold(oddity.Hyperbolic(2), z)

    A push that is not linear is found out:

    >>> class Wrong(oddity.Manifold):
    ...     def push(self, z, v):
    ...         return v.square()
    >>> check_manifold(Wrong(), z)
    Traceback (most recent call last):
        ...
    AssertionError: law 'push is linear' fails for Wrong(): relative error 5.0e+00 exceeds 1.2e-12
    """
    if z.ndim != 2 or len(z) < 3:
        raise ValueError(f"z has shape {tuple(z.shape)}; the laws need points (N, d) with N >= 3")
    chosen = list(LAWS) if laws is None else list(laws)
    unknown = [name for name in chosen if name not in LAWS]
    if unknown:
        raise ValueError(f"unknown law {unknown[0]!r}; choose from {', '.join(LAWS)}")
    for name in chosen:
        try:
            with torch.no_grad():
                LAWS[name](M, z.detach())
        except AssertionError as error:
            raise AssertionError(f"law {name!r} fails for {M}: {error}") from None


def _push_is_linear(M: Manifold, z: Tensor) -> None:
    u, v = _vectors(z, 2)
    _close(M.push(z, 2 * u - 3 * v), 2 * M.push(z, u) - 3 * M.push(z, v))


def _frame_is_push_of_basis(M: Manifold, z: Tensor) -> None:
    (v,) = _vectors(z, 1)
    _close((M.frame(z) @ v[..., None])[..., 0], M.push(z, v))


def _batch_is_rows(M: Manifold, z: Tensor) -> None:
    (v,) = _vectors(z, 1)
    c = _curves(z)
    _close(M.push(z, v), torch.stack([M.push(z[i], v[i]) for i in range(len(z))]))
    _close(M.frame(z), torch.stack([M.frame(z[i : i + 1])[0] for i in range(len(z))]))
    _close(M.length(c), torch.stack([M.length(c[i]) for i in range(len(z))]))
    _close(M.norm(z[:, None], v), torch.stack([M.norm(z[i], v) for i in range(len(z))]))


def _shapes_are_kept(M: Manifold, z: Tensor) -> None:
    d = z.shape[-1]
    grid = z[:, None].expand(-1, 2, -1)
    _require(M.metric(grid).shape == (len(z), 2, d, d), f"metric has shape {tuple(M.metric(grid).shape)}")
    _require(M.metric(z[0]).shape == (d, d), f"a single point's metric has shape {tuple(M.metric(z[0]).shape)}")
    _require(M.metric(z[:0]).shape == (0, d, d), "an empty batch gives no empty metric")
    _require(M.log_volume(z[:1]).shape == (1,), "a batch of one is squeezed")
    _require(M.length(_curves(z)[None]).shape == (1, len(z)), "length loses a leading axis")


def _dtype_and_device_are_kept(M: Manifold, z: Tensor) -> None:
    (v,) = _vectors(z, 1)
    for name, value in {"push": M.push(z, v), "metric": M.metric(z), "length": M.length(_curves(z))}.items():
        _require(value.dtype == z.dtype, f"{name} is {value.dtype} for points of {z.dtype}")
        _require(value.device == z.device, f"{name} is on {value.device} for points on {z.device}")


def _inputs_are_untouched(M: Manifold, z: Tensor) -> None:
    before, flag = z.clone(), z.requires_grad
    M.metric(z)
    M.log_volume(z)
    M.geodesic(z[:1], z[:1] + 0.01)
    _require(torch.equal(z, before), "the points were changed")
    _require(z.requires_grad == flag, "requires_grad was changed")


def _metric_is_positive(M: Manifold, z: Tensor) -> None:
    G = M.metric(z)
    _close(G, G.mT)
    lowest, highest = (torch.linalg.eigvalsh(G)[:, i] for i in (0, -1))
    slack = _tolerance(z) * highest
    _require(bool((lowest >= -slack).all()), f"smallest eigenvalue {float(lowest.min()):.2e}")


def _norm_inner_and_metric_agree(M: Manifold, z: Tensor) -> None:
    u, v = _vectors(z, 2)
    G = M.metric(z)
    _close(M.inner(z, u, v), torch.einsum("ni,nij,nj->n", u, G, v))
    _close(M.norm(z, v).square(), M.inner(z, v, v))
    _close(torch.exp(2 * M.log_volume(z)), torch.linalg.det(G.double()).to(z.dtype))


def _secant_is_second_order(M: Manifold, z: Tensor) -> None:
    """The length of a fixed curve by secants has an error series in even powers of the step.

    Two extrapolations then leave almost nothing; an error of first or third order would survive them. The rate itself
    is no law: the leading term may vanish by chance.
    """
    if z.dtype != torch.float64:
        return  # rounding hides the series in single precision
    curve = _curves(z, n=256)
    lengths = [M.length(curve[:, ::step]) for step in (16, 8, 4, 2, 1)]
    for order in (2, 4, 6):
        lengths = [fine + (fine - coarse) / (2**order - 1) for coarse, fine in itertools.pairwise(lengths)]
    _close(lengths[0], lengths[1], 3e-5)


def _secants_are_secants(M: Manifold, z: Tensor) -> None:
    c = _curves(z)
    _close(
        torch.linalg.vector_norm(M.secants(c), dim=-1), torch.linalg.vector_norm(M.secant(c[:, :-1], c[:, 1:]), dim=-1)
    )


def _secant_follows_push(M: Manifold, z: Tensor) -> None:
    (v,) = _vectors(z, 1)
    h = torch.finfo(z.dtype).eps ** (1 / 3)
    step = h * v
    secant = torch.linalg.vector_norm(M.secant(z - step / 2, z + step / 2), dim=-1) / h
    _close(secant, M.norm(z, v), tolerance=50 * torch.finfo(z.dtype).eps ** (0.6 if z.dtype == torch.float64 else 0.4))


def _energy_and_length_agree(M: Manifold, z: Tensor) -> None:
    c = _curves(z)
    steps = torch.linalg.vector_norm(M.secants(c), dim=-1)
    _close(M.length(c), steps.sum(-1))
    _close(M.energy(c), 0.5 * steps.shape[-1] * steps.square().sum(-1))
    _require(bool((M.length(c).square() <= 2 * M.energy(c) * (1 + _tolerance(z))).all()), "length^2 exceeds 2 energy")


def _scaling(M: Manifold, z: Tensor) -> None:
    _close((4 * M).metric(z), 4 * M.metric(z))
    _close((4 * M).length(_curves(z)), 2 * M.length(_curves(z)))
    _close((M + M).metric(z), 2 * M.metric(z))
    _close((M + M).energy(_curves(z)), 2 * M.energy(_curves(z)))


def _chain_model_is_the_derivative(M: Manifold, z: Tensor) -> None:
    """Energy, gradient and exact Hessian of the model against finite differences of the energy, on an uneven grid."""
    c, h = _curves(z), 1e-5
    widths = torch.softmax(torch.randn(c.shape[:2], dtype=z.dtype, device=z.device, generator=_generator(z)), 1)[:, 1:]
    fine, coarse = (M.secants(x).square().sum(-1) for x in (c, c[:, ::2]))
    fine, coarse = 0.5 * (fine / widths).sum(-1), 0.5 * (coarse / doubled(widths)).sum(-1)
    energy = M.chain_model(c, widths).energy  # of second or of fourth order, or a sum of both
    off, slack = (energy - fine).abs(), (fine - coarse).abs() + _tolerance(z) * fine
    _require(bool((off <= slack).all()), f"energy {energy.tolist()} where the secants have {fine.tolist()}")
    if z.dtype != torch.float64:
        return
    model = M.chain_model(c, widths, exact=True)
    direction = torch.randn(c.shape, dtype=c.dtype, device=c.device, generator=_generator(c))
    direction[:, [0, -1]] = 0
    up, down = (M.chain_model(c + s * h * direction, widths) for s in (1, -1))
    inner = direction[:, 1:-1]
    _close(model.energy, energy)
    _close((up.energy - down.energy) / (2 * h), (model.gradient * inner).sum((-2, -1)), tolerance=1e-5)
    _close((up.gradient - down.gradient) / (2 * h), _apply(model, inner), tolerance=1e-5)


def _apply(model: ChainModel, x: Tensor) -> Tensor:
    """The exact Hessian times x, ``(B, n-1, d)``."""
    diagonal, upper, skip = model.hessian()
    y = (diagonal @ x[..., None])[..., 0]
    for rows, blocks in ((slice(None), upper), (slice(1, None, 2), skip)):
        some = y[:, rows]  # a view
        some[:, :-1] += (blocks @ x[:, rows][:, 1:, :, None])[..., 0]
        some[:, 1:] += (blocks.mT @ x[:, rows][:, :-1, :, None])[..., 0]
    return y


def _geodesic_keeps_its_word(M: Manifold, z: Tensor) -> None:
    """Ends met, no longer than the line, zero from a point to itself, the same there and back."""
    curve = _curves(z)
    a, b = curve[:, 0], curve[:, -1]
    g = M.geodesic(a, b)
    _close(g.points[:, 0], a)
    _close(g.points[:, -1], b)
    _require(bool(g.converged.all()), f"a short geodesic did not converge: {g.why}")
    line = a[:, None] + torch.linspace(0, 1, 129, dtype=z.dtype, device=z.device)[:, None] * (b - a)[:, None]
    slack = 20 * torch.finfo(z.dtype).eps ** 0.5
    _require(bool((g.length <= M.length(line) * (1 + slack)).all()), "longer than the straight line")
    _require(float(M.dist(a, a).abs().max()) == 0, "dist(a, a) is not zero")
    _close(M.dist(b, a), g.length, tolerance=slack)


def _acceleration_is_quadratic(M: Manifold, z: Tensor) -> None:
    (v,) = _vectors(z, 1)
    a, slack = M.acceleration(z, v), 1e3 * _tolerance(z)  # solving with the metric costs its condition number
    _close(M.acceleration(z, -2 * v), 4 * a, slack)
    _close(torch.stack([M.acceleration(z[i], v[i]) for i in range(len(z))]), a, slack)
    _close((3 * M + M).acceleration(z, v), a, slack)


def _acceleration_is_that_of_the_metric(M: Manifold, z: Tensor) -> None:
    """G z'' = dL/dz - (dG/dt) v, by central differences of the metric: Christoffel's symbols by brute force."""
    if z.dtype != torch.float64:
        return  # differences of the metric lose too many digits
    (v,) = _vectors(z, 1)
    h, axes = 1e-5, torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    dG = torch.stack([(M.metric(z + h * e) - M.metric(z - h * e)) / (2 * h) for e in axes], -1)  # (N, d, d, d)
    slope, turn = torch.einsum("nijk,ni,nj->nk", dG, v, v), torch.einsum("nkij,ni,nj->nk", dG, v, v)
    _close(M.force(z, v), slope / 2 - turn, 1e-7, size=_size(M, z, v))
    _close((M.metric(z) @ M.acceleration(z, v)[..., None])[..., 0], M.force(z, v), 1e-8, size=_size(M, z, v))


def _fused_is_default(M: Manifold, z: Tensor) -> None:
    """Overrides for speed keep the meaning."""
    u, v = _vectors(z, 2)
    slack, size = 1e2 * _tolerance(z), _size(M, z, v)
    _close(M.force(z, v), Manifold.force(M, z, v), slack, size=size)
    _close(M.linear_curvature(z, u, v), Manifold.linear_curvature(M, z, u, v), 10 * slack, size=size)
    _close(M.frame(z).mT @ M.frame(z), Manifold.frame(M, z).mT @ Manifold.frame(M, z))


def _size(M: Manifold, z: Tensor, v: Tensor) -> float:
    """Largest squared speed: what forces and curvatures are small or large against."""
    return float(M.inner(z, v, v).max())


def _curvature_belongs_to_the_plane(M: Manifold, z: Tensor) -> None:
    """Sectional curvature does not depend on the basis of its plane, and scaling a metric scales it inversely."""
    if z.shape[-1] < 2 or z.dtype != torch.float64:
        return
    u, v = _vectors(z, 2)
    K = M.sectional_curvature(z, u, v)
    size = max(float(K.abs().max()), 1.0)
    _close(M.sectional_curvature(z, v - 3 * u, u + v), K, 1e-8, size=size)
    _close((4 * M).sectional_curvature(z, u, v), K / 4, 1e-8, size=size)
    if z.shape[-1] == 2:
        _close(M.scalar_curvature(z), 2 * K, 1e-8, size=size)


def _exp_undoes_log(M: Manifold, z: Tensor) -> None:
    curve = _curves(z)
    a, b = curve[:, 0], curve[:, -1]
    v = M.log(a, b)
    slack = 1e-3 if z.dtype == torch.float64 else 1e-2
    end, rest = M.exp(a, torch.stack([v, torch.zeros_like(v)]))
    _close(end - a, b - a, slack)
    _close(rest, a)
    _close(M.norm(a, v), M.dist(a, b), slack)
    _require(float(M.log(a, a).abs().max()) == 0, "log from a point to itself is not zero")


def _transport_keeps_inner_products(M: Manifold, z: Tensor) -> None:
    u, v = _vectors(z, 2)
    c = _curves(z, n=16)
    moved = M.transport(c, u)[:, -1], M.transport(c, v)[:, -1]
    slack = 1e-4 if z.dtype == torch.float64 else 1e-3
    _close(M.inner(c[:, -1], *moved), M.inner(z, u, v), slack, size=float((M.norm(z, u) * M.norm(z, v)).max()))


def _gradient_of_the_distance(M: Manifold, z: Tensor) -> None:
    """Its sign and size against finite differences; zero from a point to itself; none where nobody asks."""
    curve = _curves(z)
    a, b = curve[:, 0].clone(), curve[:, -1].clone()
    with torch.enable_grad():
        _require(not M.dist(a, b).requires_grad or _has_parameters(M, a), "a graph is built although no end asks")
        ends = [x.clone().requires_grad_() for x in (a, b)]
        by_a, by_b = torch.autograd.grad(M.dist(*ends).sum(), ends)
        still = torch.autograd.grad(M.dist(ends[0], ends[0]).sum(), ends[0])[0]
    _require(float(still.abs().max()) == 0, f"the gradient from a point to itself is {float(still.abs().max()):.1e}")
    if z.dtype != torch.float64:
        return
    (v,) = _vectors(z, 1)
    step = 1e-4 * v
    _close((M.dist(a + step, b) - M.dist(a - step, b)) / 2e-4, (by_a * v).sum(-1), 1e-2)
    _close((M.dist(a, b + step) - M.dist(a, b - step)) / 2e-4, (by_b * v).sum(-1), 1e-2)


def _has_parameters(M: Manifold, z: Tensor) -> bool:
    """Whether the metric itself is part of a graph: a decoder's weights ask for gradients."""
    return M.push(z, z).requires_grad


LAWS: dict[str, Law] = {
    "push is linear": _push_is_linear,
    "frame is the push of the basis": _frame_is_push_of_basis,
    "a batch is its rows": _batch_is_rows,
    "shapes are kept": _shapes_are_kept,
    "dtype and device are kept": _dtype_and_device_are_kept,
    "inputs are untouched": _inputs_are_untouched,
    "the metric is symmetric and positive semi-definite": _metric_is_positive,
    "norm, inner product, volume and metric agree": _norm_inner_and_metric_agree,
    "lengths by secants are of second order": _secant_is_second_order,
    "the secants of a chain are its secants": _secants_are_secants,
    "secants follow the push": _secant_follows_push,
    "energy and length agree": _energy_and_length_agree,
    "scaling and addition": _scaling,
    "the chain model is the derivative of the energy": _chain_model_is_the_derivative,
    "a geodesic keeps its word": _geodesic_keeps_its_word,
    "acceleration is quadratic in the velocity": _acceleration_is_quadratic,
    "acceleration is that of the metric": _acceleration_is_that_of_the_metric,
    "fused companions agree with their defaults": _fused_is_default,
    "curvature belongs to the plane": _curvature_belongs_to_the_plane,
    "exp undoes log": _exp_undoes_log,
    "transport keeps inner products": _transport_keeps_inner_products,
    "the gradient of the distance is its slope": _gradient_of_the_distance,
}
"""The laws by name."""


def _generator(z: Tensor) -> torch.Generator:
    return torch.Generator(device=z.device).manual_seed(0)


def _vectors(z: Tensor, count: int) -> list[Tensor]:
    """Fixed tangent vectors."""
    shape = (count, *z.shape)
    return list(torch.randn(shape, dtype=z.dtype, device=z.device, generator=_generator(z)))


def _curves(z: Tensor, n: int = 8) -> Tensor:
    """Short bent curves from each point a tenth of the way to the next one: ``(N, n+1, d)``."""
    t = torch.linspace(0, 1, n + 1, dtype=z.dtype, device=z.device)[:, None]
    chord = 0.1 * (z.roll(1, 0) - z)
    return z[:, None] + t * chord[:, None] + t * (1 - t) * 0.5 * chord.roll(1, 0)[:, None]


def _tolerance(z: Tensor) -> float:
    """Relative rounding error that a sum over a frame may gather."""
    return 500 * torch.finfo(z.dtype).eps if z.dtype != torch.float64 else 1.2e-12


def _close(a: Tensor, b: Tensor, tolerance: float | None = None, *, size: float | None = None) -> None:
    """Assert equality up to a share of the size, by default that of the largest entry."""
    limit = _tolerance(b) if tolerance is None else tolerance
    _require(a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}")
    scale = size if size is not None else float(b.abs().max()) if b.numel() else 0.0
    error = float((a - b).abs().max()) if b.numel() else 0.0
    relative = error / max(scale, torch.finfo(b.dtype).tiny)
    _require(relative <= limit, f"relative error {relative:.1e} exceeds {limit:.1e}")


def _require(holds: bool, message: str) -> None:
    """An assertion that neither ``python -O`` nor a test runner rewrites."""
    if not holds:
        raise AssertionError(message)
