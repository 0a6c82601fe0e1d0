"""Second-order expansions of batch functions: value, frame, and the Hessian of any weighting, in one pass.

Gauss-Newton needs a function's value and derivative at each point; Newton's method also the d x d Hessian of
<w, f>, for weights w that are known only once the values are; the geodesic equation and curvature need f'' along pairs
of vectors. An :class:`Expansion` gives all of them. Automatic differentiation provides it for any function
(:mod:`oddity.numerics.autodiff`); dense networks have it here in closed form, several times faster, since one tape of
activations serves value, frame, Hessian and f''; so have networks of convolutions, whose derivatives in all directions
go through a layer as one batch of images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from oddity.numerics.stages import SOFTPLUS_THRESHOLD, Stage

_NUMBERS_AT_A_TIME = 1 << 20  # of all tangents after one convolution

__all__ = [
    "ClosedForm",
    "Expansion",
    "PulledValue",
    "Pulling",
    "along",
    "gram",
    "layered_expansion",
    "pull",
]


class Expansion(NamedTuple):
    """A batch function around N points, to second order."""

    value: Tensor  # (N, D)
    frame: Tensor  # (d, N, D)   the derivative along each axis, the axes first
    bend: Callable[[Tensor], Tensor]  # (N, D) -> (N, d, d)   Hessian of <w, f> at fixed w
    second: Callable[[Tensor, Tensor], Tensor] | None = None  # (k, N, d) twice -> (k, N, D)   f''[u, v]


def gram(a: Tensor, b: Tensor) -> Tensor:
    """Products of the frames of each point: ``(k, N, D), (l, N, D) -> (N, k, l)``.

    Whole and contiguous frames only: a sliced operand is copied, which takes 50 times longer than the product.
    """
    return torch.bmm(a.permute(1, 0, 2), b.permute(1, 2, 0))


def pull(frame: Tensor, w: Tensor) -> Tensor:
    """Frame' w at each point: ``(d, N, D), (N, D) -> (N, d)``. As a row times a matrix: three times faster here."""
    return torch.bmm(w[:, None], frame.permute(1, 2, 0))[:, 0]


def layered_expansion(net: nn.Module) -> Callable[[Tensor], Expansion] | None:
    """Closed-form expansion of a network of known layers, or None where it is not one.

    Parameters
    ----------
    net
        A plain ``nn.Sequential`` (no subclass with a ``forward`` of its own, no hooks) of ``Linear``, ``Conv2d`` and
        ``ConvTranspose2d`` layers, smooth activations (Tanh, Sigmoid, Softplus), ``Flatten``, ``Unflatten`` and
        ``Identity``.

    Returns
    -------
    callable or None
        Called with points ``(N, d)`` it gives their :class:`Expansion`; for a dense network it is a
        :class:`ClosedForm`. All derivatives go through a layer at once, as one batch. By the chain rule the Hessian of
        <w, f> is a sum over the activations s of P' diag(g s'') P, with P the derivative of the pre-activation and g
        the adjoint of the activation; and f''[u, v] gains s'' (P u) (P v) at each and is carried on as a derivative.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    >>> expand = layered_expansion(net)
    >>> value, frame, bend, second = expand(torch.zeros(5, 2))
    >>> value.shape, frame.shape, bend(value).shape
    (torch.Size([5, 3]), torch.Size([2, 5, 3]), torch.Size([5, 2, 2]))
    >>> second(torch.ones(1, 5, 2), torch.ones(1, 5, 2)).shape
    torch.Size([1, 5, 3])
    >>> images = nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 2, 2)), nn.ConvTranspose2d(1, 3, 2, 2), nn.Tanh())
    >>> layered_expansion(images)(torch.zeros(5, 2)).frame.shape
    torch.Size([2, 5, 48])
    """
    if not _is_layered(net):
        return None
    layers = list(net)
    return _Images(layers) if any(isinstance(layer, _CONVOLUTIONS + _SHAPES) for layer in layers) else _Dense(layers)


@runtime_checkable
class ClosedForm(Protocol):
    """A function whose expansion is known in closed form, output by output."""

    def __call__(self, z: Tensor) -> Expansion:
        """Value, frame and bend: ``(N, d)``."""
        ...

    def values(self, z: Tensor) -> Tensor:
        """Value alone: ``(N, d) -> (N, D)``."""
        ...

    def outputs(self, index: Tensor) -> ClosedForm:
        """The same function with these outputs only, of which there are k: ``(k,)``."""
        ...


PulledValue: TypeAlias = tuple[Tensor, Callable[[Tensor], Tensor]]
"""Value ``(N, D)``, and the map of weights w to J(z)' w, ``(N, D) -> (N, d)``."""


@runtime_checkable
class Pulling(Protocol):
    """A function whose transposed derivative is known in closed form."""

    def pulling(self, z: Tensor) -> PulledValue:
        """Value and transposed derivative at points ``(N, d)``."""
        ...


class _Dense:
    """The closed form of a dense network."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers

    def __call__(self, z: Tensor) -> Expansion:
        return _expand(self.layers, z)

    def values(self, z: Tensor) -> Tensor:
        for layer in self.layers:
            z = layer(z)
        return z

    def pulling(self, z: Tensor) -> PulledValue:
        value, adjoints = z, list[Callable[[Tensor], Tensor]]()
        for layer in self.layers:
            before, value = value, layer(value)
            if type(layer) in _SLOPE:
                adjoints.append(_times_slope(layer, before, value))
            elif isinstance(layer, nn.Linear):
                adjoints.append(_linear(layer, before, value).adjoint)

        def pulled(w: Tensor) -> Tensor:
            for adjoint in reversed(adjoints):
                w = adjoint(w)
            return w

        return value, pulled

    def _stages(self) -> list[Stage] | None:
        stages, matrix, bias = list[Stage](), None, None
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                if matrix is not None:
                    stages.append(Stage(matrix, bias))
                matrix, bias = layer.weight.mT, layer.bias
            elif type(layer) in _SLOPE:
                name, rate = _ACTIVATIONS.get(type(layer)), 1.0
                if isinstance(layer, nn.Softplus):
                    rate = layer.beta
                    name = name if layer.threshold == SOFTPLUS_THRESHOLD else None
                if matrix is None or name is None:  # an activation of an activation, or one that loops do not know
                    return None
                stages.append(Stage(matrix, bias, name, rate))
                matrix = None
        return stages if matrix is None else [*stages, Stage(matrix, bias)]

    def outputs(self, index: Tensor) -> _Dense:
        last = max(i for i, layer in enumerate(self.layers) if isinstance(layer, nn.Linear))
        whole = self.layers[last]
        assert isinstance(whole, nn.Linear)
        biased = whole.bias is not None
        part = nn.utils.skip_init(nn.Linear, whole.in_features, len(index), bias=biased).to(whole.weight)
        with torch.no_grad():
            part.weight.copy_(whole.weight[index])
            if biased:
                part.bias.copy_(whole.bias[index])
        return _Dense([*self.layers[:last], part, *self.layers[last + 1 :]])


class _Images:
    """The closed form of a network with convolutions: so many points at a time that their tangents stay in cache."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers, self.widest = layers, 0

    def __call__(self, z: Tensor) -> Expansion:
        if not self.widest:
            self.widest = _widest(self.layers, z.new_zeros(1, z.shape[-1]))
        rows = max(1, _NUMBERS_AT_A_TIME // (self.widest * z.shape[-1]))
        size = 1 << (rows.bit_length() - 1)  # even chunks of a batch padded to 16
        if len(z) <= size:
            return _expand(self.layers, z)
        parts = [_expand(self.layers, part) for part in z.split(size)]

        def bend(w: Tensor) -> Tensor:
            return torch.cat([part.bend(v) for part, v in zip(parts, w.split(size), strict=True)])

        def second(u: Tensor, v: Tensor) -> Tensor:
            pieces = zip(parts, u.split(size, 1), v.split(size, 1), strict=True)
            return torch.cat([part.second(*pair) for part, *pair in pieces if part.second], 1)

        values, frames = torch.cat([part.value for part in parts]), torch.cat([part.frame for part in parts], 1)
        return Expansion(values, frames, bend, second)


def _widest(layers: list[nn.Module], z: Tensor) -> int:
    """Numbers that the layers make of one point, ``(1, d)``, where there are most of them."""
    sizes = [1]
    with torch.no_grad():
        for layer in layers:
            z = layer(z)
            sizes.append(z.numel())
    return max(sizes)


def _is_layered(net: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether the layers are all there is to the network: exact types, no forward of its own, no hooks."""
    if not isinstance(net, nn.Sequential) or type(net).forward is not nn.Sequential.forward or len(net) == 0:
        return False
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    return not isinstance(net[0], (nn.Identity, *_SLOPE)) and all(map(_is_known, net)) and not hooked


def _is_known(layer: nn.Module) -> bool:
    """Whether the layer's derivative is known: its exact type, zeros around images, rows kept apart."""
    match layer:
        case nn.Conv2d() | nn.ConvTranspose2d():
            simple = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
            return type(layer) in _CONVOLUTIONS and simple
        case nn.Flatten():
            return type(layer) is nn.Flatten and layer.start_dim != 0
        case nn.Unflatten():
            return type(layer) is nn.Unflatten and layer.dim != 0
    return type(layer) in {nn.Linear, nn.Identity, *_SLOPE}


class _Linear(NamedTuple):
    push: Callable[[Tensor], Tensor]  # (k, N or 1, *before) -> (k, N or 1, *after)
    adjoint: Callable[[Tensor], Tensor]  # (N, *after) -> (N, *before)


class _Activation(NamedTuple):
    layer: nn.Module
    y: Tensor  # (N, *)   after
    first: Tensor  # (N, *)   slope
    frame: Tensor  # (d, N, *)   derivative of y


def _expand(layers: list[nn.Module], z: Tensor) -> Expansion:
    value, frame = z, torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)[:, None]  # (N, d), (d, 1, d)
    tape: list[_Linear | _Activation] = []
    fresh = False  # whether the frame is a product of its own, that no entry of the tape holds
    for layer in layers:
        if isinstance(layer, _CONVOLUTIONS):
            value = value.contiguous(memory_format=torch.channels_last)
        before, value = value, layer(value)
        if type(layer) in _SLOPE:
            first = _SLOPE[type(layer)](layer, before, value)
            frame = scaled(frame, first) if fresh else frame * first
            fresh = False
            tape.append(_Activation(layer, value, first, frame))
        elif not isinstance(layer, nn.Identity):
            fresh = fresh or not isinstance(layer, _SHAPES)
            step = _linear(layer, before, value)
            frame = step.push(frame)
            tape.append(step)
    frame = frame.expand(-1, *value.shape).flatten(2)
    return Expansion(
        value.flatten(1),
        frame,
        lambda w: _bend(tape, w.reshape(value.shape)),
        lambda u, v: _second(tape, u, v, value).flatten(2),
    )


def _times_slope(layer: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Weights times the slope of an activation y = s(x); where that is a polynomial in y, without an array for it."""
    if isinstance(layer, nn.Tanh):
        return lambda w: torch.addcmul(w, w * y, y, value=-1)
    if isinstance(layer, nn.Sigmoid):
        return lambda w: (wy := w * y).addcmul_(wy, y, value=-1)
    return _SLOPE[type(layer)](layer, x, y).mul


def _linear(layer: Any, x: Tensor, y: Tensor) -> _Linear:
    """The linear part of the layer that takes x to y: for all directions in one batch, and its adjoint."""
    match layer:
        case nn.Linear():
            return _Linear(lambda frame: frame @ layer.weight.mT, lambda w: w @ layer.weight)
        case nn.Conv2d() | nn.ConvTranspose2d():
            step: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
            step |= {"dilation": layer.dilation, "groups": layer.groups}
            weight, functions = layer.weight, nn.functional
            if isinstance(layer, nn.Conv2d):
                return _Linear(
                    _of_images(lambda images: functions.conv2d(images, weight, **step)),
                    lambda w: conv2d_input(x.shape, weight, w, **step),
                )
            grown = step | {"output_padding": layer.output_padding}
            return _Linear(
                _of_images(lambda images: functions.conv_transpose2d(images, weight, **grown)),
                lambda w: functions.conv2d(w, weight, **step),
            )
    return _Linear(lambda frame: frame.reshape(*frame.shape[:2], *y.shape[1:]), lambda w: w.reshape(x.shape))


def _of_images(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of images ``(n, *)`` for frames of them ``(k, N, *)``."""

    def of_frame(frame: Tensor) -> Tensor:
        images = frame.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return torch.unflatten(f(images), 0, frame.shape[:2])

    return of_frame


def scaled(frame: Tensor, factor: Tensor) -> Tensor:
    """Frame times a factor ``(N, D)``, in place if it may: fresh memory costs. The frame must be the caller's."""
    if frame.shape[1:] != factor.shape or torch.is_grad_enabled():
        return frame * factor
    return frame.mul_(factor)


def _bend(tape: list[_Linear | _Activation], w: Tensor) -> Tensor:
    """Carry the adjoint of <w, f> back through the layers, and gather the bend of each activation: ``(N, *)``.

    Each is P' diag(w s'') P with P the derivative of x, or Q' diag(w s'' / s'^2) Q with Q = s' P that of y.
    """
    d = len(next((entry.frame for entry in tape if isinstance(entry, _Activation)), w[:0]))
    bend = w.new_zeros(len(w), d, d)
    for entry in reversed(tape):
        if isinstance(entry, _Linear):
            w = entry.adjoint(w)
        else:
            ratio = w * _ratio(entry.layer, entry.y, entry.first)
            bend = bend + gram((ratio * entry.frame).flatten(2), entry.frame.flatten(2))
            w = w * entry.first
    return bend if d else w.new_zeros(len(w), w.shape[-1], w.shape[-1])


def _second(tape: list[_Linear | _Activation], u: Tensor, v: Tensor, value: Tensor) -> Tensor:
    """Carry f''[u, v] forward through the layers: ``(k, N, d)`` twice ``-> (k, N, *)``."""
    second = None  # zero so far
    for entry in tape:
        if isinstance(entry, _Linear):
            second = None if second is None else entry.push(second)
        else:
            ratio = _ratio(entry.layer, entry.y, entry.first)
            own = along(entry.frame, u).mul(along(entry.frame, v)).mul(ratio)
            second = own if second is None else second * entry.first + own
    return value.new_zeros(len(u), *value.shape) if second is None else second


def _ratio(layer: nn.Module, y: Tensor, first: Tensor) -> Tensor:
    """The second derivative of an activation y over the square of the first.

    Where the first underflows, so does the derivative of y, and this has to be finite only.
    """
    ratio: Tensor = _CURVE[type(layer)](layer, y, first) / first.clamp(min=torch.finfo(y.dtype).tiny ** 0.5)
    return ratio


def along(frame: Tensor, v: Tensor) -> Tensor:
    """Derivatives along vectors: ``(d, N, *), (k, N, d) -> (k, N, *)``."""
    by_axis = v.reshape(*v.shape, *[1] * (frame.ndim - 2))  # (k, N, d, 1, ...)
    first, *rest = (by_axis[:, :, i] * axis for i, axis in enumerate(frame))
    total: Tensor = sum(rest, first)
    return total


_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_SHAPES = (nn.Flatten, nn.Unflatten)

_SLOPE: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Tensor]] = {
    nn.Tanh: lambda _, _x, y: 1 - y * y,
    nn.Sigmoid: lambda _, _x, y: y * (1 - y),
    nn.Softplus: lambda layer, x, _y: torch.sigmoid(layer.beta * x),
}
"""First derivative of an activation y = s(x), by x and y."""

_ACTIVATIONS = {nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.Softplus: "softplus"}
"""What stages call them."""

_CURVE: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Tensor]] = {
    nn.Tanh: lambda _, y, _first: -2 * y,
    nn.Sigmoid: lambda _, y, _first: 1 - 2 * y,
    nn.Softplus: lambda layer, _y, first: layer.beta * (1 - first),
}
"""Second derivative over the first, by y and the first."""
