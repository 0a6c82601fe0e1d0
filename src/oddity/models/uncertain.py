"""Uncertainty for a decoder that has none: noise that grows away from the data, fitted to its residuals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from oddity.models.checks import check_positive, check_seed, check_whole
from oddity.models.distance_scale import DistanceScale
from oddity.models.rbf import (
    DEFAULT_A,
    DEFAULT_CENTRES,
    DEFAULT_MIN_STD,
    DEFAULT_ZETA,
    PrecisionNetwork,
    RBFPrecision,
    WeightLikelihood,
    full_zeta,
)
from oddity.numerics.ambient import door, doors
from oddity.numerics.autodiff import Differential
from oddity.numerics.expansion import ClosedForm, Expansion
from oddity.numerics.networks import Standing, name_of, parts_of

__all__ = ["UncertainDecoder", "add_uncertainty"]

_BLOCK = 1 << 22  # numbers in one block of residuals: 16 MB in float32
_WITNESSES = 1000  # codes at which standard deviations are compared


@doors
class UncertainDecoder:
    """A decoder beside a standard deviation of its own: what :func:`add_uncertainty` returns.

    Attributes
    ----------
    mean, std : callable
        ``(N, d) -> (N, ...)`` as the decoder gives it, and ``(N, d) -> (N, D)``.
    scale : DistanceScale or RBFPrecision
        The network behind ``std``; ``scale.wall()`` says what leaving the data costs.
    std_on_data, std_off_data, largest_std : float
        Mean standard deviation at the codes; at twice the distance of the farthest code from their mean, in the
        directions of the codes; and infinitely far away.
    explained : float
        Share of the data's variance that the mean explains: 1 is all, below 0 worse than a constant.

    Examples
    --------
    >>> z = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> decoder = torch.nn.Linear(2, 5).eval().requires_grad_(False)
    >>> uncertain = add_uncertainty(decoder, z, decoder(z))
    >>> mean, std = uncertain(z)
    >>> bool((mean == decoder(z)).all()), std.shape, uncertain.explained
    (True, torch.Size([200, 5]), 1.0)
    """

    def __init__(
        self,
        mean: Callable[[Tensor], Tensor],
        scale: PrecisionNetwork,
        expand_mean: Callable[[Tensor], Expansion] | None = None,
        *,
        std_on_data: float,
        std_off_data: float,
        explained: float,
    ) -> None:
        self.mean = Standing(mean)
        self.std, self.scale, self.expand_mean = scale.std, scale, expand_mean
        self.std_on_data, self.std_off_data, self.explained = std_on_data, std_off_data, explained
        self.largest_std = float(scale.zeta.rsqrt().mean())

    @property
    def expand_std(self) -> ClosedForm:
        """The expansion of ``std`` to second order in closed form, (N, d)."""
        return self.scale.expand_std

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation."""
        return self.mean(z), self.std(z)

    def __repr__(self) -> str:
        return (
            f"UncertainDecoder({name_of(self.mean)}: std {self.std_on_data:.3g} on the data, "
            f"{self.std_off_data:.3g} off it, {self.largest_std:.3g} at most; the mean explains {self.explained:.1%})"
        )


@door
def add_uncertainty(
    decoder: Any,
    z: Tensor,
    x: Any,
    *,
    n_centres: int | Literal["auto"] = "auto",
    a: float | Literal["auto"] = "auto",
    zeta: float | None = None,
    min_std: float | None = None,
    epochs: int = 50,
    seed: int = 0,
    **given: Any,
) -> UncertainDecoder:
    r"""Fit a standard deviation that grows away from the data to a decoder that has none, and leave it untouched.

    For a mean that somebody else trained: bumps along the codes, by which a :class:`~oddity.DistanceScale` knows where
    the data end, and its weight by maximum likelihood on the residuals ``x - decoder(z)``. For deterministic
    autoencoders, GANs with an encoder or inverted codes, flows, and VAEs whose decoder gives a mean only.

    Parameters
    ----------
    decoder
        Any decoder that :func:`~oddity.expected_metric` takes; a standard deviation of its own is replaced.
    z : Tensor
        Codes of the data (n, d), n >= 2, float32 or float64: an encoder's means, or inverted.
    x : Tensor or array
        The data (n, ...), row by row those of z, scaled as the decoder's output.
    n_centres, a
        "auto" leaves both to the data (:meth:`~oddity.DistanceScale.from_codes`). A number for either asks for the
        paper's network, :class:`~oddity.RBFPrecision`, with so many centres, by default 64, and such a reach, 2.
    zeta : float, optional
        The precision far away; default 1e-2 / range^2 with the range of all of x: a largest standard deviation of ten
        times the range.
    min_std : float, optional
        The observation noise, a floor of the residuals; default a hundredth of the range.
    epochs : int
        Updates of the weight, each exact and monotone (:class:`~oddity.models.rbf.WeightLikelihood`).
    seed : int
        For what is chosen among the codes; the global random state is left alone.
    **given
        What a conditional decoder takes beside z, as for :func:`~oddity.expected_metric`.

    Returns
    -------
    UncertainDecoder
        To be handed to :func:`~oddity.expected_metric`. It tells how the standard deviation off the data compares
        with that on it. It views the decoder, which is neither copied nor changed.

    Raises
    ------
    ValueError
        When codes or data are unfit or do not belong together, the decoder is (see :func:`~oddity.expected_metric`), or
        its residuals are larger than ``zeta ** -0.5``.

    Notes
    -----
    One range and one floor serve all outputs: columns of different units should be rescaled first.

    References
    ----------
    Arvanitidis et al. 2018, section 4 (the RBF variance network); that a deterministic decoder's metric needs it:
    Hauberg, "Only Bayes should learn a manifold", 2018.

    Examples
    --------
    >>> z = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> decoder = torch.nn.Linear(2, 5).eval().requires_grad_(False)
    >>> x = decoder(z) + 0.1 * torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    >>> uncertain = add_uncertainty(decoder, z, x)
    >>> 0.05 < uncertain.std_on_data < 0.3, uncertain.std_off_data > 10 * uncertain.std_on_data
    (True, True)
    """
    (mean, expansion), _ = parts_of(decoder, given)
    f = Differential(mean, expansion=expansion)
    z, rows = _admitted(f, z, x)
    width = float(rows.max() - rows.min()) or 1.0
    zeta = DEFAULT_ZETA / width**2 if zeta is None else zeta
    min_std = DEFAULT_MIN_STD * width if min_std is None else min_std
    check_whole(epochs=epochs)
    check_positive(min_std=min_std)
    check_seed(seed)
    with torch.no_grad():
        squares = _squared_residuals(f, z, rows)
        _refuse_loose(f, zeta, squares)
        scale = _placed(f, z, squares, n_centres, a, zeta, min_std, seed).to(z)
        _fit(scale, f, z, rows, min_std, epochs)
        total = float((rows - rows.mean(0)).square().sum())
        on, off = (float(scale.std(points).mean()) for points in _witnesses(z))
    return UncertainDecoder(
        f.function,
        scale.eval().requires_grad_(False),
        expansion if f.mode == "closed form" else None,
        std_on_data=on,
        std_off_data=off,
        explained=1 - float(squares.sum()) * len(z) / total if total else float(not squares.any()),
    )


def _admitted(f: Differential, z: Tensor, x: Any) -> tuple[Tensor, Tensor]:
    """Codes (n, d) and data (n, D) that fit each other and the decoder."""
    if not isinstance(z, Tensor) or z.ndim != 2 or len(z) < 2 or z.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"z is {_shape(z)}; give codes (n, d), n >= 2, as a tensor of float32 or float64")
    z, rows = z.detach(), (x if isinstance(x, Tensor) else torch.as_tensor(x, device="cpu")).detach().to(z)
    if rows.ndim < 2 or len(rows) != len(z):
        raise ValueError(f"x is {_shape(rows)} for {len(z)} codes; give data (n, ...), one row for each code")
    rows = rows.flatten(1)
    for name, values in {"z": z, "x": rows}.items():
        if not bool(values.isfinite().all()):
            where = tuple((~values.isfinite()).nonzero()[0].tolist())
            raise ValueError(f"{name} holds {values[where].item()} at index {where}; give finite values")
    f.check(z)
    if rows.shape[1] != f.outputs:
        raise ValueError(
            f"{f.name} gives {f.outputs} outputs and x has {rows.shape[1]} columns; give the data it decodes"
        )
    return z, rows


def _squared_residuals(f: Differential, z: Tensor, rows: Tensor) -> Tensor:
    """Mean squares of the residuals of each output: (D,)."""
    squares = rows.new_zeros(rows.shape[1], dtype=torch.float64)
    for codes, data in _blocks(z, rows):
        squares += (data - f(codes)).square().sum(0, dtype=torch.float64)
    return squares / len(z)


def _placed(
    f: Differential,
    z: Tensor,
    squares: Tensor,
    n_centres: int | Literal["auto"],
    a: float | Literal["auto"],
    zeta: float,
    min_std: float,
    seed: int,
) -> PrecisionNetwork:
    """The network, whose weight is still to be found."""
    if n_centres == "auto" and a == "auto":
        residual = float((squares + min_std**2).sum().sqrt())
        return DistanceScale.from_codes(z, f, residual, zeta=zeta, min_std=min_std, seed=seed)
    count, reach = DEFAULT_CENTRES if n_centres == "auto" else n_centres, DEFAULT_A if a == "auto" else a
    return RBFPrecision.from_codes(z, f.outputs, n_centres=count, a=reach, zeta=zeta, seed=seed)


def _refuse_loose(f: Differential, zeta: float, squares: Tensor) -> None:
    worst, widest = float(squares.max().sqrt()), float(full_zeta(zeta, f.outputs).rsqrt().min())
    if not worst <= widest:
        raise ValueError(
            f"an output of {f.name} is off by {worst:.3g} (root mean square), more than the largest standard "
            f"deviation, {widest:.3g} = zeta ** -0.5: scale x as the decoder's output, or choose a smaller zeta"
        )


def _fit(scale: PrecisionNetwork, f: Differential, z: Tensor, rows: Tensor, min_std: float, epochs: int) -> None:
    """Fit the weight to the residuals."""
    problem = WeightLikelihood(scale, min_std)
    for codes, data in _blocks(z, rows):
        problem.add(codes, (data - f(codes)).square())
    for _ in problem.climb(epochs):
        pass


def _blocks(z: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, _BLOCK // rows.shape[1])
    return zip(z.split(size), rows.split(size), strict=True)


def _witnesses(z: Tensor) -> tuple[Tensor, Tensor]:
    """Some of the codes, and points well off the data in the same directions."""
    on = z[:: -(-len(z) // _WITNESSES)]
    away, farthest = on - z.mean(0), (z - z.mean(0)).norm(dim=1).max()
    return on, z.mean(0) + 2 * farthest * torch.nn.functional.normalize(away, dim=1)


def _shape(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
