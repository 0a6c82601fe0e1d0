"""The RBF precision network of images: its bumps go through transposed convolutions with non-negative weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from oddity.models.checks import check_seed, layers_of
from oddity.models.layers import ImageShape, doubling, pyramid
from oddity.models.rbf import DEFAULT_ZETA, RBFPrecision, placed
from oddity.numerics.ambient import doors

_SWEEPS = 3  # updates of each factor between two passes over the data
_WARM_UP = 20  # the same at the start, towards the weights wanted there


@doors
class ConvRBFPrecision(RBFPrecision):
    r"""An :class:`RBFPrecision` whose weight is a stack of non-negative transposed convolutions.

    ``beta(z) = T_L ... T_1 C v(z) + zeta``: the bumps v make coarse maps, with the weight C >= 0, and transposed
    convolutions T >= 0 without bias or activation make an image of precisions of them. All of it is linear, so that
    beta is a positive sum of bumps still: it falls off the data, the standard deviation grows up to ``zeta ** -0.5``,
    and with ``weight`` = T_L ... T_1 C, (D, K), everything that holds for :class:`RBFPrecision` holds here, closed
    forms included. Neighbouring pixels share weights, of which there are fewer than D K.

    The parameters are ``coarse`` (K, channels, height, width) and ``filters``. ``weight`` is derived from them, by
    :meth:`compose`, after every update and on loading: whoever writes the parameters calls it. No entry of it exceeds
    ``largest``, a buffer.

    Parameters
    ----------
    centres, bandwidths, zeta
        As for :class:`RBFPrecision`.
    image_shape : tuple of int
        Channels, height and width of the data, D in all.
    channels : sequence of int
        Maps before each transposed convolution, in order, at least one.
    seed : int
        For the first filters, which differ from each other; the global random state is left alone.

    References
    ----------
    Arvanitidis et al. 2018, the convolutional model of the experiments with images; the update is the
    multiplicative one of Lee and Seung, "Algorithms for non-negative matrix factorization", 2000, for the Gaussian
    likelihood and more than two factors (:meth:`improve`).

    Examples
    --------
    >>> centre, bandwidth = torch.zeros(1, 2), torch.tensor([0.5])
    >>> rbf = ConvRBFPrecision(centre, bandwidth, (1, 6, 5), channels=(3, 2), zeta=0.25)
    >>> std = rbf.std(torch.tensor([[0.0, 0.0], [9.0, 0.0]]))
    >>> std.shape, bool((std[0] < 2).all()), bool((std[1] == 2).all())
    (torch.Size([2, 30]), True, True)
    """

    largest: Tensor

    def __init__(
        self,
        centres: Tensor,
        bandwidths: Tensor,
        image_shape: ImageShape,
        channels: Sequence[int],
        *,
        zeta: float | Tensor = DEFAULT_ZETA,
        seed: int = 0,
    ) -> None:
        check_seed(seed)
        super().__init__(centres, bandwidths, math.prod(image_shape), zeta=zeta)
        del self.weight
        self.image_shape, self.channels = image_shape, layers_of(channels, "channels", least=1)
        shapes = pyramid(image_shape, self.channels[::-1])[::-1]
        self._places = [doubling(shape) for shape in shapes[1:]]
        generator = torch.Generator("cpu").manual_seed(int(seed))
        place: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # the same draws whatever the defaults
        self.coarse = nn.Parameter(centres.new_ones(len(centres), *shapes[0]))
        self.filters = nn.ParameterList(
            # four weights of each map meet in a pixel: of mean one together
            (0.5 + torch.rand(before[0], after[0], 4, 4, generator=generator, **place)).to(centres) / (4 * before[0])
            for before, after in pairwise(shapes)
        )
        self.register_buffer("largest", centres.new_full((), math.inf))
        self.register_buffer("weight", None, persistent=False)
        self.register_load_state_dict_post_hook(_compose)  # type: ignore[no-untyped-call]
        self.compose()

    @torch.no_grad()
    def compose(self) -> None:
        """Derive ``weight`` from the parameters."""
        composed = self._composed([self.coarse, *self.filters])
        self._buffers["weight"] = self._without_dust(composed.clamp(max=self.largest))

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert the module: the weight is then derived anew, in the precision of its factors."""
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.compose()
        return self

    def _composed(self, factors: Sequence[Tensor]) -> Tensor:
        maps, *filters = factors
        for kernel, place in zip(filters, self._places, strict=True):
            maps = nn.functional.conv_transpose2d(maps, kernel, **place)
        return maps.flatten(1).T.contiguous()  # (D, K)

    @torch.no_grad()
    def begin(self, wanted: Tensor) -> None:
        """Bring the weight near the one wanted, (D, K): by the likelihood of bumps that do not overlap."""
        self._climb(torch.ones_like(wanted), 1 / wanted, _WARM_UP)

    @torch.no_grad()
    def improve(self, gain: Tensor, loss: Tensor, largest: float) -> None:
        r"""Update every factor of the weight W a few times; no update lowers the likelihood or makes a factor negative.

        The expectation-maximisation step of :class:`~oddity.models.rbf.WeightLikelihood` bounds the likelihood from
        below by ``sum_dk W_dk gain_dk log W'_dk - loss_dk W'_dk``. What maximises that for a free W' is the update of a
        plain network. Here W' is a sum of products of factors, linear in each: the same inequality gives, for a factor
        f, ``f <- f (share of W gain / W') / (share of loss)``, where shares are derivatives of ``<W', .>`` by f. The
        factors take turns, and no pass over the data is needed between them.

        ``largest`` is kept by clipping ``weight`` itself, which the bound above does not know of.
        """
        self.largest.fill_(largest)
        self._climb(self.weight.double() * gain, loss, _SWEEPS)

    def _climb(self, mass: Tensor, loss: Tensor, sweeps: int) -> None:
        """Climb ``sum mass log W - loss W``, each (D, K), by the factors in turn; derive the weight."""
        parameters = [self.coarse, *self.filters]
        factors = [parameter.detach().double() for parameter in parameters]
        least = torch.finfo(self.coarse.dtype).tiny ** 0.25  # products of a few of these are normal numbers
        for i in sweeps * [*range(len(factors))]:
            factor = factors[i].requires_grad_()
            with torch.enable_grad():
                weight = self._composed(factors)
            (above,) = torch.autograd.grad(weight, factor, mass / weight.detach(), retain_graph=True)
            (below,) = torch.autograd.grad(weight, factor, loss)
            ratio = (above / below).where(below > 0, 1)  # what falls off the image's edge has no share in anything
            factors[i] = (factor.detach() * ratio).clamp(min=least)
        for parameter, factor in zip(parameters, factors, strict=True):
            parameter.copy_(factor)
        self.compose()

    @classmethod
    def from_codes(  # type: ignore[override]
        cls,
        z: Tensor,
        image_shape: ImageShape,
        channels: Sequence[int],
        *,
        n_centres: int = 64,
        a: float = 2.0,
        zeta: float | Tensor = DEFAULT_ZETA,
        seed: int = 0,
    ) -> Self:
        """Place the centres by k-means on the codes, as :meth:`RBFPrecision.from_codes`.

        Examples
        --------
        >>> z = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> ConvRBFPrecision.from_codes(z, (1, 8, 8), (4, 4), n_centres=8).weight.shape
        torch.Size([64, 8])
        """
        return cls(*placed(z, n_centres, a, seed), image_shape, channels, zeta=zeta, seed=seed)


def _compose(rbf: ConvRBFPrecision, _: Any) -> None:
    rbf.compose()
