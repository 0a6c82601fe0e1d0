"""Derivatives of batch functions: the only module that touches ``torch.func`` and forward-mode autodiff.

No single mode of automatic differentiation serves every network: fused attention on CPU has no forward
derivative, an LSTM has none at all, a GRU cannot be vectorised. :class:`Differential` therefore tries the modes
of :data:`MODES` in order of speed on the first point that it sees, keeps the first that works, and says which.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import is_
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from oddity.numerics.ambient import alone, is_transformed
from oddity.numerics.expansion import ClosedForm, Expansion, PulledValue, Pulling, layered_expansion, pull
from oddity.numerics.networks import (
    behind,
    eager,
    evaluation,
    form_of,
    module_behind,
    name_of,
    names_of,
    refuse,
    standing_for,
    untouched,
)
from oddity.numerics.stages import Layered, Stage

__all__ = [
    "BEND_MODES",
    "MODES",
    "SECOND_MODES",
    "Differential",
    "gradient",
    "has_tangent",
    "refuse_followed",
    "usable",
]

_CLOSED = "closed form"
_FEW_DIMENSIONS = 4
_HALF = (torch.float16, torch.bfloat16)
_NUMBERS_AT_A_TIME = 1 << 20  # outputs of all points in all directions; a network's inner layers are far wider

_STEP = 0.05  # to see whether a function moves whose derivative is zero
_NO_DERIVATIVE = (
    "{} has no derivative ({}); it must be differentiable PyTorch code from input to output: no argmax, detach, "
    "inference mode or numpy on the way"
)

Function = Callable[[Tensor], Tensor]
Rule = Callable[[Function, Tensor, Tensor], tuple[Tensor, Tensor]]


def has_tangent(x: Tensor) -> bool:
    """Whether a forward derivative rides on x, which NumPy would drop without a word."""
    return forward_ad.unpack_dual(x).tangent is not None


def refuse_followed(method: str, **points: Tensor) -> None:
    """Refuse points whose derivatives a solver would lose without a word: those of forward mode and ``torch.func``."""
    for name, x in points.items():
        if isinstance(x, Tensor) and (is_transformed(x) or has_tangent(x)):
            raise ValueError(
                f"{name} is followed by torch.func or forward-mode derivatives, which {method} does not know; dist has "
                f"derivatives by {name}.requires_grad_() and backward(), metric and other methods at a point have these"
            )


def _vectorised_jvp(f: Function, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Push all directions through one shared forward pass."""
    pushed: tuple[Tensor, Tensor] = vmap(lambda v: jvp(f, (z,), (v,)), out_dims=(None, 0))(directions)  # type: ignore[arg-type, assignment]
    return pushed


def _one_jvp_each(f: Function, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Push the directions one after another: for functions that ``vmap`` cannot enter."""
    tangents = []
    for v in directions:
        with forward_ad.dual_level():
            value, tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(z, v.contiguous())))
        tangents.append(torch.zeros_like(value) if tangent is None else tangent)
    return value, torch.stack(tangents)


def _pulled(f: Function, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, f(z), w and J(z)'w with a graph in z and in w: where reverse-mode rules begin."""
    z = z if z.requires_grad else z.detach().requires_grad_()
    value = f(z)
    w = torch.zeros_like(value, requires_grad=True)
    (pulled,) = torch.autograd.grad(value, z, w, create_graph=True)
    return z, value, w, pulled


def _double_backward(f: Function, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """J v as the derivative of w -> J'w in the direction v: two reverse passes, no forward mode."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        z, value, w, pulled = _pulled(f, z)
        tangents = [torch.autograd.grad(pulled, w, v, retain_graph=True, create_graph=keep)[0] for v in directions]
    return (value if keep else value.detach()), torch.stack(tangents)


def _rowwise_jacrev(f: Function, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Whole Jacobians, row by row in reverse: the last resort, one reverse pass an output."""
    J = vmap(jacrev(lambda row: f(row[None])[0]))(z)  # (N, D, d)
    return f(z), torch.einsum("nij,knj->kni", J, directions)


def _nested_jvp(f: Function, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Value and f''(z)[u, v] for a pair of directions: the derivative along v of the derivative along u."""
    u, v = directions
    (value, _), (_, second) = jvp(lambda x: jvp(f, (x,), (u,)), (z,), (v,))  # type: ignore[misc]
    return value, second


def _triple_backward(f: Function, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Value and f''(z)[u, v], the derivative of w -> <f''(z)[u, v], w>: three reverse passes, no forward mode."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        z, value, w, pulled = _pulled(f, z)
        torch.autograd.grad(pulled, w, directions[0], retain_graph=True)  # raises where f is differentiable only once
        (twice,) = torch.autograd.grad(pulled, z, directions[0], create_graph=True, materialize_grads=True)
        second = torch.zeros_like(value)
        if twice.requires_grad:  # else f is linear
            (second,) = torch.autograd.grad(twice, w, directions[1], create_graph=keep, materialize_grads=True)
    return (value if keep else value.detach()), second


def _plain() -> AbstractContextManager[Any]:
    return nullcontext()


@contextmanager
def _math_attention() -> Iterator[None]:
    """Attention by plain products; the fused layers of evaluation mode stand aside too."""
    with alone():  # the switches are those of the whole process
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)


Modes: TypeAlias = dict[str, tuple[Rule, Callable[[], AbstractContextManager[Any]]]]

# PyTorch counts the levels of forward derivatives for all threads together: one thread at a time
MODES: Modes = {
    "jvp": (_vectorised_jvp, alone),
    "jvp with math attention": (_vectorised_jvp, _math_attention),
    "one jvp each": (_one_jvp_each, alone),
    "one jvp each with math attention": (_one_jvp_each, _math_attention),
    "double backward": (_double_backward, _plain),
    "double backward with math attention": (_double_backward, _math_attention),
    "jacrev": (_rowwise_jacrev, _plain),
}
"""Derivative modes, fastest first. All give the same derivative; they differ in what they can enter."""

SECOND_MODES: Modes = {
    "nested jvp": (_nested_jvp, alone),
    "nested jvp with math attention": (_nested_jvp, _math_attention),
    "triple backward": (_triple_backward, _plain),
    "triple backward with math attention": (_triple_backward, _math_attention),
}
"""Modes of the second derivative, fastest first."""


def _jvp_of_gradient(f: Function, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of <w, f>, all columns through one shared gradient."""
    N, d = z.shape
    basis = torch.eye(d, dtype=z.dtype, device=z.device)[:, None].expand(d, N, d).contiguous()
    slope = grad(lambda x: (w * f(x)).sum())
    columns: Tensor = vmap(lambda v: jvp(slope, (z,), (v,))[1])(basis)
    return slope(z), columns.permute(1, 2, 0)


def _gradient_of_gradient(f: Function, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The same by reverse mode twice, one pass a column."""
    keep = torch.is_grad_enabled()
    options: dict[str, Any] = {"materialize_grads": True, "allow_unused": True, "create_graph": keep}
    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_()
        (slope,) = torch.autograd.grad((w * f(z)).sum(), z, create_graph=True)
        if not slope.requires_grad:  # f is linear
            return slope, z.new_zeros(*z.shape, z.shape[-1])
        columns = [torch.autograd.grad(part.sum(), z, retain_graph=True, **options)[0] for part in slope.unbind(-1)]
    return slope, torch.stack(columns, -1)


def _no_bend(f: Function, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Nothing, for functions with one derivative only: solvers then stay with Gauss-Newton."""
    return torch.zeros_like(z), z.new_zeros(*z.shape, z.shape[-1])


BEND_MODES: Modes = {
    "jvp of gradient": (_jvp_of_gradient, alone),
    "jvp of gradient with math attention": (_jvp_of_gradient, _math_attention),
    "gradient of gradient": (_gradient_of_gradient, _plain),
    "gradient of gradient with math attention": (_gradient_of_gradient, _math_attention),
    "none": (_no_bend, _plain),
}
"""Modes of the Hessian of <w, f>, fastest first."""


def gradient(f: Function) -> Function:
    """Gradient of a batch function to single numbers: from ``(N, k) -> (N,)`` to ``(N, k) -> (N, k)``.

    Examples
    --------
    >>> gradient(lambda x: x.square().sum(-1))(torch.tensor([[1.0, 2.0]])).tolist()
    [[2.0, 4.0]]
    """
    of_sum: Function = grad(lambda x: f(x).sum())
    return of_sum


class Differential:
    """A batch function together with its derivative, in a mode that the function supports.

    Parameters
    ----------
    f
        Maps ``(N, d)`` to ``(N, ...)``, each row by itself. Trailing axes are flattened to one, of size D. Weights
        in half precision are widened to the dtype of the points for the time of a call; a compiled module is run
        uncompiled. Large outputs are computed for so many points at a time that memory stays bounded.
    expansion
        Optional closed form ``(N, d) -> Expansion``, used in place of automatic differentiation. A network of
        known layers, an ``nn.Sequential`` of linear and convolutional ones and smooth activations, needs none: it is
        recognised.
    mode
        A key of :data:`MODES`; by default found by trying them in order at the first call.

    Attributes
    ----------
    mode : str or None
        The mode in use: a key of :data:`MODES`, ``"closed form"``, or None before the first derivative.
    bend_mode : str or None
        The mode of :meth:`curvature`: a key of :data:`BEND_MODES`, or None before its first call.
    second_mode : str or None
        The mode of :meth:`second`: a key of :data:`SECOND_MODES`, ``"closed form"``, or None before its first call.
    outputs : int
        D, or 0 before the first check.

    Raises
    ------
    ValueError
        If f is a module in training mode or quantised, has weights of another dtype or device than the points,
        cannot map the points, returns another number of rows, is random or mixes rows, or has no derivative.

    Examples
    --------
    >>> f = Differential(lambda z: torch.stack([z[:, 0] * z[:, 1], z[:, 0] ** 2], 1))
    >>> value, tangents = f.tangents(torch.tensor([[2.0, 3.0]]), torch.eye(2)[:, None])
    >>> value.tolist(), tangents.tolist(), f.mode
    ([[6.0, 4.0]], [[[3.0, 4.0]], [[2.0, 0.0]]], 'jvp')
    """

    def __init__(
        self, f: Function, *, expansion: Callable[[Tensor], Expansion] | None = None, mode: str | None = None
    ) -> None:
        if not callable(f):
            raise ValueError(f"expected a function of a tensor, got {type(f).__name__}; pass e.g. decoder.mean")
        if mode is not None and mode not in MODES:
            raise ValueError(f"unknown derivative mode {mode!r}; choose one of {', '.join(MODES)}")
        f = eager(f)
        self._module = module_behind(f)
        whole = [] if self._module is None else [self._module]
        refuse(*whole)
        self._given = f
        if _is_half(self._module):
            expansion, f = None, _lent(f, whole)
        elif expansion is None and mode is None and isinstance(f, nn.Module):
            expansion = layered_expansion(f)
        self._f, self._expansion = f, expansion
        self.mode = _CLOSED if expansion is not None else mode
        self.bend_mode: str | None = None
        self.second_mode: str | None = None
        self._known: set[tuple[int, torch.dtype, torch.device]] = set()
        self._networks: list[nn.Module] = whole
        self._parts: list[nn.Module] = []
        self._tried_as: tuple[list[bool], list[Any]] = [], []
        self.outputs = 0

    @property
    def name(self) -> str:
        """A short name of the function for messages."""
        return name_of(self._f)

    @property
    def form(self) -> str:
        """How the function's outputs are read, where that is a guess: see :func:`~oddity.numerics.networks.form_of`."""
        return form_of(self._f)

    @property
    def function(self) -> Function:
        """The function as it is called here: ``(N, d) -> (N, ...)``."""
        return self._f

    @property
    def closed_form(self) -> ClosedForm | None:
        """The closed form output by output, where there is one."""
        return self._expansion if isinstance(self._expansion, ClosedForm) else None

    def check(self, z: Tensor) -> None:
        """Refuse, with a remedy, points that the function cannot map. Cheap after the first call.

        A network that has been put into another mode since, or another network under the same name, is tried anew.
        """
        signature = (z.shape[-1], z.dtype, z.device)
        if signature in self._known and self._is_as_tried():
            return
        with alone():
            self.look()
            self._check_weights(z)
            rows = z.reshape(-1, z.shape[-1])[:2].detach()
            if len(rows):
                with untouched(self._networks, z.device):
                    self._check_function(rows)
            if not self._is_as_tried():
                self._known.clear()
            self._tried_as = [part.training for part in self._parts], names_of(self._given)
            self._known.add(signature)

    def _is_as_tried(self) -> bool:
        modes, named = self._tried_as
        now = names_of(self._given)
        return modes == [part.training for part in self._parts] and len(named) == len(now) and all(map(is_, named, now))

    def look(self) -> None:
        """Find the networks that the function leads to, and refuse those that cannot be differentiated as they are."""
        self._networks, tensors = behind(self._given)
        self._parts = [part for module in self._networks for part in module.modules()]
        refuse(*self._networks)
        if any(x.is_inference() for x in tensors):
            raise ValueError(
                f"{self.name} holds a tensor made in inference mode, which autograd refuses; give it a clone made "
                "outside, x = x.clone()"
            )
        if _is_foreign(self._networks):
            self._f, self._expansion = _lent(self._given, self._networks), None
            self.mode = None if self.mode == _CLOSED else self.mode

    def _check_weights(self, z: Tensor) -> None:
        weights = next((p for p in self._module.parameters() if p.is_floating_point()), None) if self._module else None
        if weights is None:
            return
        if weights.dtype != z.dtype and not _is_half(self._module):
            raise ValueError(
                f"the points are {z.dtype} but the weights of {self.name} are {weights.dtype}; convert one, "
                f"e.g. z.to({weights.dtype}) or decoder.to({z.dtype})"
            )
        if weights.device != z.device:
            raise ValueError(
                f"the points are on {z.device} but the weights of {self.name} are on {weights.device}; "
                f"move one, e.g. z.to({str(weights.device)!r})"
            )

    def _check_function(self, rows: Tensor) -> None:
        """Try one or two points: the output's form, and a closed form or a derivative held against the function."""
        value = self._tried(rows)
        if not isinstance(value, Tensor):
            raise ValueError(f"{self.name} returned {type(value).__name__}; it must return one tensor (n, ...)")
        if value.ndim < 2 or value.shape[0] != len(rows):
            raise ValueError(
                f"{self.name} mapped {len(rows)} points to shape {tuple(value.shape)}; it must keep the rows: "
                f"({len(rows)}, D)"
            )
        if not value.is_floating_point():
            raise ValueError(
                f"{self.name} returned {value.dtype}, which has no derivative; it must return floating-point numbers: "
                "no argmax or rounding on the way"
            )
        if self._expansion is not None:
            self._check_expansion(rows, value)
        else:
            self._check_rows(rows, value)
            self._check_derivative(rows, value)
        self.outputs = value[0].numel()

    def _tried(self, rows: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                return self._f(rows)
        except (RuntimeError, IndexError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{self.name} cannot map points of shape (n, {rows.shape[-1]}): {reason}") from error

    def _check_rows(self, rows: Tensor, value: Tensor) -> None:
        """Hold the first points against themselves in a larger batch, and in the same batch again."""
        more = self._tried(torch.cat([rows, rows[:1]]))
        if more.shape[1:] != value.shape[1:]:
            raise ValueError(
                f"{self.name} maps points to shape {tuple(value.shape[1:])} or {tuple(more.shape[1:])}, by their "
                "number; it must keep to one"
            )
        if _near(more[: len(rows)], value):
            return
        if _near(self._tried(rows), value):
            raise ValueError(
                f"{self.name} maps a point to other values in other company, as batch statistics do; it must map each "
                f"row by itself: {evaluation(*self._networks)}"
            )
        raise ValueError(
            f"{self.name} is random: the same points, other values; to end dropout, {evaluation(*self._networks)}, and "
            "give its mean in place of samples"
        )

    def _check_derivative(self, rows: Tensor, value: Tensor) -> None:
        """Detached functions pass for constant ones: where derivatives are zero, f must not move to first order.

        One of several outputs may be detached, such as the standard deviation: then most of those whose derivatives
        are zero move, and to either side. A piecewise linear output that is flat moves to one side at most, at a kink.
        """
        v = torch.arange(1, rows.shape[-1] + 1, dtype=rows.dtype, device=rows.device).cos().expand(rows.shape)
        with torch.no_grad():
            slopes = self.tangents(rows, v[None])[1].reshape(len(rows), -1)
        flat = ~slopes.any(0)
        if not bool(flat.any()):
            return
        forth, back = (
            (self._tried(rows + step * v) - value).reshape(len(rows), -1)[:, flat] for step in (_STEP, -_STEP)
        )
        move = (forth - back).abs()
        if not bool(flat.all()):
            move = torch.minimum(move, torch.minimum(forth.abs(), back.abs()))
        size = value.reshape(len(rows), -1)[:, flat].abs().amax()
        if bool((move.amax(0) > 1e-3 * size).float().mean() > 0.5):
            which = "all zero" if bool(flat.all()) else f"zero for {int(flat.sum())} of {len(flat)} outputs"
            raise ValueError(_NO_DERIVATIVE.format(self.name, f"{which}, while its values change"))

    def _check_expansion(self, rows: Tensor, value: Tensor) -> None:
        """Hold a closed form against the function itself, once: its value, and a fixed weighting of its slopes."""
        assert self._expansion is not None
        with torch.no_grad():
            expanded = self._expansion(rows)
        value = value.flatten(1)
        weights = torch.arange(value.shape[-1], dtype=rows.dtype, device=rows.device).cos().expand(value.shape)
        with torch.enable_grad():
            x = rows.clone().requires_grad_()
            (slope,) = torch.autograd.grad(
                (weights * self._flat(x)).sum(), x, allow_unused=True, materialize_grads=True
            )
        same = expanded.value.shape == value.shape and expanded.frame.shape == (rows.shape[-1], *value.shape)
        rounding = 100 * torch.finfo(rows.dtype).eps * float(expanded.frame.abs().sum(-1).nan_to_num(0.0).amax())
        if not same or not _near(expanded.value, value) or not _near(pull(expanded.frame, weights), slope, rounding):
            raise ValueError(f"the closed-form expansion of {self.name} disagrees with it; correct it, or give none")

    def __call__(self, z: Tensor) -> Tensor:
        """Value: ``(*, d) -> (*, D)``."""
        rows = z.reshape(-1, z.shape[-1])
        size = self._rows_at_a_time(1)
        value = self._flat(rows) if len(rows) <= size else torch.cat([self._flat(part) for part in rows.split(size)])
        return value.reshape(*z.shape[:-1], value.shape[-1])

    def _rows_at_a_time(self, directions: int) -> int:
        """So many points that their outputs in all directions, and a network's inner layers, stay within bounds."""
        if self._expansion is not None or not self.outputs:
            return sys.maxsize
        size = _NUMBERS_AT_A_TIME // (self.outputs * max(1, directions))
        return 1 << max(0, size.bit_length() - 1)  # even chunks of a batch padded to 16

    def _flat(self, z: Tensor) -> Tensor:
        with alone() if self._turns_switches else nullcontext():
            return self._f(z).flatten(1)

    @property
    def _turns_switches(self) -> bool:
        """Whether its derivatives turn a switch that its values must not see turned by another thread."""
        return any("attention" in (mode or "") for mode in (self.mode, self.bend_mode, self.second_mode))

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """Directional derivative J(z) v: ``(*, d), (*, d) -> (*, D)``; leading shapes broadcast."""
        z, v = torch.broadcast_tensors(z, v)
        rows = z.reshape(-1, z.shape[-1])
        directions = v.reshape(rows.shape)[None]
        tangents = self.tangents(rows, directions)[1]
        return tangents.reshape(*z.shape[:-1], tangents.shape[-1])

    def frame(self, z: Tensor) -> Tensor:
        """Jacobian: ``(*, d) -> (*, D, d)``."""
        rows = z.reshape(-1, z.shape[-1])
        _, tangents = self.value_and_frame(rows)
        return tangents.permute(1, 2, 0).reshape(*z.shape[:-1], tangents.shape[-1], z.shape[-1])

    def value_and_frame(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Value and derivative along each axis: ``(N, d) -> (N, D), (d, N, D)``, the axes first."""
        value, frame, *_ = self.expand(z)
        return value, frame

    def expand(self, z: Tensor) -> Expansion:
        """Value, frame, and the Hessian of <w, f> for weights w: ``(N, d)``."""
        if self._expansion is not None:
            return self._expansion(z)
        N, d = z.shape
        basis = torch.eye(d, dtype=z.dtype, device=z.device)[:, None].expand(d, N, d)
        return Expansion(*self.tangents(z, basis), lambda w: self.curvature(z, w))

    def tangents(self, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Value and directional derivatives: ``(N, d), (k, N, d) -> (N, D), (k, N, D)``."""
        if self._expansion is not None:
            value, frame, *_ = self._expansion(z)
            return value, torch.einsum("jni,knj->kni", frame, directions)
        if len(z) == 0:
            value = self._flat(z)
            return value, value.new_zeros(len(directions), *value.shape)
        size = self._rows_at_a_time(len(directions))
        if len(z) > size:
            parts = zip(z.split(size), directions.split(size, 1), strict=True)
            values, tangents = zip(*(self.tangents(*part) for part in parts), strict=True)
            return torch.cat(values), torch.cat(tangents, 1)
        rule, context = MODES[self._working_mode(z)]
        with context():
            # torch.func rejects expanded tensors whose rows share memory
            return rule(self._flat, z.contiguous(), directions.contiguous())

    def curvature(self, z: Tensor, w: Tensor) -> Tensor:
        """Hessian of z -> <w, f(z)> at each point, w held fixed: ``(N, d), (N, D) -> (N, d, d)``."""
        if self._expansion is not None:
            return self._expansion(z).bend(w)
        if len(z) == 0:
            return z.new_zeros(0, z.shape[-1], z.shape[-1])
        size = self._rows_at_a_time(z.shape[-1])
        if len(z) > size:
            return torch.cat([self.curvature(*part) for part in zip(z.split(size), w.split(size), strict=True)])
        if self.bend_mode is None:
            self.bend_mode = self._first_working(BEND_MODES, _twice(z), _twice(w))
        rule, context = BEND_MODES[self.bend_mode]
        with context():
            return rule(self._flat, z.contiguous(), w)[1]

    def pull(self, z: Tensor, w: Tensor) -> Tensor:
        """Transposed derivative J(z)' w: ``(*, d), (*, D) -> (*, d)``; leading shapes broadcast."""
        shape = torch.broadcast_shapes(z.shape[:-1], w.shape[:-1])
        rows, weights = (x.expand(*shape, x.shape[-1]).reshape(-1, x.shape[-1]) for x in (z, w))
        if self._expansion is not None:
            pulled = torch.einsum("jni,ni->nj", self._expansion(rows).frame, weights)
        else:
            size = self._rows_at_a_time(1)
            rule = self._vjp if self._working_mode(rows).startswith("jvp") else self._plain_pull
            pulled = torch.cat([rule(*part) for part in zip(rows.split(size), weights.split(size), strict=True)])
        return pulled.reshape(*shape, z.shape[-1])

    @property
    def pulling(self) -> Callable[[Tensor], PulledValue] | None:
        """Value and transposed derivative in one call, see :class:`~oddity.numerics.expansion.Pulling`, where known."""
        return self._expansion.pulling if isinstance(self._expansion, Pulling) else None

    def stages(self) -> Sequence[Stage] | None:
        """The function's stages, see :class:`~oddity.numerics.stages.Layered`, where it has them."""
        return self._expansion._stages() if isinstance(self._expansion, Layered) else None

    def _vjp(self, z: Tensor, w: Tensor) -> Tensor:
        pulled: tuple[Tensor] = vjp(self._flat, z)[1](w)
        return pulled[0]

    def _plain_pull(self, z: Tensor, w: Tensor) -> Tensor:
        """The same for functions that ``torch.func`` cannot enter."""
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            value = self._flat(z)
            if not value.requires_grad:  # f is constant
                return torch.zeros_like(z)
            (pulled,) = torch.autograd.grad(value, z, w, create_graph=keep, materialize_grads=True)
        return pulled

    def second(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Second directional derivative f''(z)[u, v]: ``(*, d)`` three times ``-> (*, D)``; shapes broadcast."""
        z, u, v = torch.broadcast_tensors(z, u, v)
        d = z.shape[-1]
        rows, pair = z.reshape(-1, d).contiguous(), torch.stack([u.reshape(-1, d), v.reshape(-1, d)])  # (2, N, d)
        if len(rows) == 0:
            return self(z)
        if (closed := self._second_order(rows)) is not None:
            return closed[1](pair[:1], pair[1:])[0].reshape(*z.shape[:-1], -1)
        if self.second_mode is None:
            self.second_mode = self._first_working(SECOND_MODES, _twice(rows), pair[:, :1].detach().repeat(1, 2, 1))
        rule, context = SECOND_MODES[self.second_mode]
        with context():
            second = rule(self._flat, rows, pair)[1]
        return second.reshape(*z.shape[:-1], second.shape[-1])

    def pulled_second(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """J(z)' f''(z)[u, v]: ``(*, d)`` three times ``-> (*, d)``; leading shapes broadcast.

        Of an expansion that has no second derivatives of its own the component k is the Hessian of <w, f> between u
        and v, at the k-th tangent w. In many dimensions those Hessians cost more than one second derivative.
        """
        z, u, v = torch.broadcast_tensors(z, u, v)
        rows = [x.reshape(-1, z.shape[-1]) for x in (z, u, v)]
        if (closed := self._second_order(rows[0])) is not None:
            return pull(closed[0], closed[1](rows[1][None], rows[2][None])[0]).reshape(z.shape)
        if self._expansion is None or z.shape[-1] > _FEW_DIMENSIONS:
            return self.pull(z, self.second(z, u, v))
        _, frame, bend, _ = self._expansion(rows[0])
        pulled = [torch.einsum("nij,ni,nj->n", bend(w), *rows[1:]) for w in frame]
        return torch.stack(pulled, -1).reshape(z.shape)

    def bends(self, z: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Frame, and f''[u, v] for k pairs of vectors: ``(N, d), (k, N, d)`` twice ``-> (d, N, D), (k, N, D)``."""
        if (closed := self._second_order(z)) is not None:
            return closed[0], closed[1](u, v)
        return self.value_and_frame(z)[1], torch.stack([self.second(z, *pair) for pair in zip(u, v, strict=True)])

    def _second_order(self, z: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]] | None:
        """Frame and second derivatives in closed form, where they are known."""
        if self._expansion is None or self.second_mode not in (None, _CLOSED):
            return None
        _, frame, _, second = self._expansion(z)
        if second is None:
            return None
        self.second_mode = _CLOSED
        return frame, second

    def _working_mode(self, z: Tensor) -> str:
        """Mode in use, found on the first point seen."""
        if self.mode is None:
            self.mode = self._first_working(MODES, _twice(z), torch.ones_like(_twice(z)).repeat(2, 1, 1))
        return self.mode

    def _first_working(self, modes: Modes, z: Tensor, directions: Tensor) -> str:
        """Try the modes on one point. Which errors a network raises is not documented: any is a no.

        A mode that works only by a slow detour of torch, as its warning says, stands back behind the others.
        """
        last, detour = "", ""
        for mode, (rule, context) in modes.items():
            try:
                with alone(), context(), torch.no_grad(), warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    rule(self._flat, z.contiguous(), directions.contiguous())
            except (RuntimeError, NotImplementedError, AttributeError) as error:
                last = str(error).strip().splitlines()[0]
            else:
                if not any("performance drop" in str(warning.message) for warning in said):
                    return mode
                detour = detour or mode
        if detour:
            return detour
        raise ValueError(_NO_DERIVATIVE.format(self.name, last))


def _twice(rows: Tensor) -> Tensor:
    """The first row as a batch: what works for one row alone may not work for several."""
    return rows[:1].detach().repeat(2, 1)


def _is_half(module: nn.Module | None) -> TypeGuard[nn.Module]:
    return module is not None and any(p.dtype in _HALF for p in module.parameters())


def _is_foreign(modules: Sequence[nn.Module]) -> bool:
    """Whether weights were made in inference mode, so that autograd refuses them."""
    return any(w.is_inference() for module in modules for w in (*module.parameters(), *module.buffers()))


class _Loan(nn.Module):
    """A function beside the modules whose weights it uses, called with others lent to it.

    Half-precision weights are lent in the dtype of the points: as they are the chords of neighbouring points would be
    mostly rounding, and no curve stationary. Weights made in inference mode are cloned. The modules hold what is lent
    for the time of a call, so that only one thread can make it.
    """

    def __init__(self, f: Function, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.modules_lent_to = nn.ModuleList(modules)
        self.call = (f,)  # in a tuple it is no part of its own

    def forward(self, z: Tensor) -> Any:
        return self.call[0](z)

    def lend(self, z: Tensor) -> Any:
        weights = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        lent = {name: _fit(w, z.dtype) for name, w in weights.items() if w.dtype in _HALF or w.is_inference()}
        with alone():
            value = functional_call(self, lent, (z,))
        return value.to(z.dtype) if isinstance(value, Tensor) else value


def _fit(w: Tensor, dtype: torch.dtype) -> Tensor:
    w = w.clone() if w.is_inference() else w
    return w.to(dtype) if w.dtype in _HALF else w


def usable(f: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """The same function, if it can be differentiated: weights made in inference mode are cloned at each call."""
    modules = behind(f)[0]
    return _lent(f, modules) if _is_foreign(modules) else f


def _lent(f: Function, modules: Sequence[nn.Module]) -> Function:
    """The same function, its modules' weights lent to it in a form that can be differentiated."""
    loan = _Loan(f, modules)
    lent: Function = standing_for(f, lambda z: loan.lend(z))
    return lent


def _near(a: Tensor, b: Tensor, rounding: float = 0.0) -> bool:
    """Whether two results agree to a percent of the largest entry; an entry that is not finite tells nothing."""
    known = b.isfinite()
    size = b[known].abs().amax() if bool(known.any()) else 0.0
    return bool(((a - b)[known].abs() <= 0.01 * size + rounding).all())
