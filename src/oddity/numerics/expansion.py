"""Second-order expansions of batch functions: value, frame, and the Hessian of any weighting, in one pass.

Gauss-Newton needs a function's value and derivative at each point; Newton's method also the d x d Hessian of
<w, f>, for weights w that are known only once the values are. An :class:`Expansion` gives all three. Automatic
differentiation provides it for any function (:mod:`oddity.numerics.autodiff`); dense networks have it here in closed
form, several times faster, since one tape of pre-activations serves value, frame and Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["ClosedForm", "Expansion", "dense_expansion", "gram", "pull"]


class Expansion(NamedTuple):
    """A batch function around N points, to second order."""

    value: Tensor  # (N, D)
    frame: Tensor  # (d, N, D)   the derivative along each axis, the axes first
    bend: Callable[[Tensor], Tensor]  # (N, D) -> (N, d, d)   Hessian of <w, f> at fixed w


def gram(a: Tensor, b: Tensor) -> Tensor:
    """Products of the frames of each point: ``(k, N, D), (l, N, D) -> (N, k, l)``.

    Whole and contiguous frames only: a sliced operand is copied, which takes 50 times longer than the product.
    """
    return torch.bmm(a.permute(1, 0, 2), b.permute(1, 2, 0))


def pull(frame: Tensor, w: Tensor) -> Tensor:
    """Frame' w at each point: ``(d, N, D), (N, D) -> (N, d)``. As a row times a matrix: three times faster here."""
    return torch.bmm(w[:, None], frame.permute(1, 2, 0))[:, 0]


def dense_expansion(net: nn.Module) -> ClosedForm | None:
    """Closed-form expansion of a dense network, or None where it is not one.

    Parameters
    ----------
    net
        A plain ``nn.Sequential`` (no subclass with a ``forward`` of its own, no hooks) of ``Linear`` layers and smooth
        activations: Tanh, Sigmoid, Softplus, Identity.

    Returns
    -------
    ClosedForm or None
        Called with points ``(N, d)`` it gives their :class:`Expansion`. By the chain rule the Hessian of <w, f> is a
        sum over the activations s of P' diag(g s'') P, with P the derivative of the pre-activation and g the adjoint of
        the activation.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    >>> expand = dense_expansion(net)
    >>> value, frame, bend = expand(torch.zeros(5, 2))
    >>> value.shape, frame.shape, bend(value).shape
    (torch.Size([5, 3]), torch.Size([2, 5, 3]), torch.Size([5, 2, 2]))
    """
    return _Dense(list(net)) if _is_dense(net) else None


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


class _Dense:
    """The closed form of a dense network."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers

    def __call__(self, z: Tensor) -> Expansion:
        return _expand_dense(self.layers, z)

    def values(self, z: Tensor) -> Tensor:
        for layer in self.layers:
            z = layer(z)
        return z

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


def _is_dense(net: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether the layers are all there is to the network: exact types, no forward of its own, no hooks."""
    if not isinstance(net, nn.Sequential) or type(net).forward is not nn.Sequential.forward or len(net) == 0:
        return False
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    known = {nn.Linear, nn.Identity, *_SLOPE}
    return type(net[0]) is nn.Linear and all(type(layer) in known for layer in net) and not hooked


class _Linear(NamedTuple):
    weight: Tensor  # (out, in)


class _Activation(NamedTuple):
    layer: nn.Module
    y: Tensor  # (N, D)   after
    first: Tensor  # (N, D)   slope
    frame: Tensor  # (d, N, D)   derivative of y


def _expand_dense(layers: list[nn.Module], z: Tensor) -> Expansion:
    value, frame = z, torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)[:, None]  # (N, d), (d, 1, d)
    tape: list[_Linear | _Activation] = []
    fresh = False  # whether the frame is a product of its own, that no entry of the tape holds
    for layer in layers:
        if isinstance(layer, nn.Linear):
            fresh = True
            value, frame = nn.functional.linear(value, layer.weight, layer.bias), frame @ layer.weight.mT
            tape.append(_Linear(layer.weight))
        elif not isinstance(layer, nn.Identity):
            before, value = value, layer(value)
            first = _SLOPE[type(layer)](layer, before, value)
            frame = scaled(frame, first) if fresh else frame * first
            fresh = False
            tape.append(_Activation(layer, value, first, frame))
    return Expansion(value, frame.expand(-1, *value.shape), lambda w: _bend(tape, w))


def scaled(frame: Tensor, factor: Tensor) -> Tensor:
    """Frame times a factor ``(N, D)``, in place if it may: fresh memory costs. The frame must be the caller's."""
    if frame.shape[1:] != factor.shape or torch.is_grad_enabled():
        return frame * factor
    return frame.mul_(factor)


def _bend(tape: list[_Linear | _Activation], w: Tensor) -> Tensor:
    """Carry the adjoint of <w, f> back through the layers, and gather the bend of each activation.

    Each is P' diag(w s'') P with P the derivative of x, or Q' diag(w s'' / s'^2) Q with Q = s' P that of y. Where s'
    underflows, so does Q for each activation of the table, and the ratio only has to be finite.
    """
    d = len(next((entry.frame for entry in tape if isinstance(entry, _Activation)), w[:0]))
    bend = w.new_zeros(len(w), d, d)
    for entry in reversed(tape):
        if isinstance(entry, _Linear):
            w = w @ entry.weight
        else:
            floor = torch.finfo(w.dtype).tiny ** 0.5
            ratio = w * _CURVE[type(entry.layer)](entry.layer, entry.y, entry.first)
            ratio = ratio / entry.first.clamp(min=floor)
            bend = bend + gram(ratio * entry.frame, entry.frame)
            w = w * entry.first
    return bend if d else w.new_zeros(len(w), w.shape[-1], w.shape[-1])


_SLOPE: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Tensor]] = {
    nn.Tanh: lambda _, _x, y: 1 - y * y,
    nn.Sigmoid: lambda _, _x, y: y * (1 - y),
    nn.Softplus: lambda layer, x, _y: torch.sigmoid(layer.beta * x),
}
"""First derivative of an activation y = s(x), by x and y."""

_CURVE: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Tensor]] = {
    nn.Tanh: lambda _, y, _first: -2 * y,
    nn.Sigmoid: lambda _, y, _first: 1 - 2 * y,
    nn.Softplus: lambda layer, _y, first: layer.beta * (1 - first),
}
"""Second derivative over the first, by y and the first."""
