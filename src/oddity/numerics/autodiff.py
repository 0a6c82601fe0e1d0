"""Derivatives of batch functions: the only module that touches ``torch.func`` and forward-mode autodiff.

No single mode of automatic differentiation serves every network: fused attention on CPU has no forward
derivative, an LSTM has none at all, a GRU cannot be vectorised. :class:`Differential` therefore tries the modes
of :data:`MODES` in order of speed on the first point that it sees, keeps the first that works, and says which.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["MODES", "Differential"]

Function = Callable[[Tensor], Tensor]
Rule = Callable[[Function, Tensor, Tensor], tuple[Tensor, Tensor]]


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


def _double_backward(f: Function, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """J v as the derivative of w -> J'w in the direction v: two reverse passes, no forward mode."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_()
        value = f(z)
        w = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(value, z, w, create_graph=True)
        tangents = [torch.autograd.grad(pulled, w, v, retain_graph=True, create_graph=keep)[0] for v in directions]
    return (value if keep else value.detach()), torch.stack(tangents)


def _rowwise_jacrev(f: Function, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Whole Jacobians, row by row in reverse: the last resort, one reverse pass an output."""
    J = vmap(jacrev(lambda row: f(row[None])[0]))(z)  # (N, D, d)
    return f(z), torch.einsum("nij,knj->kni", J, directions)


def _plain() -> AbstractContextManager[None]:
    return nullcontext()


def _math_attention() -> AbstractContextManager[None]:
    return sdpa_kernel(SDPBackend.MATH)


MODES: dict[str, tuple[Rule, Callable[[], AbstractContextManager[None]]]] = {
    "jvp": (_vectorised_jvp, _plain),
    "jvp with math attention": (_vectorised_jvp, _math_attention),
    "one jvp each": (_one_jvp_each, _plain),
    "one jvp each with math attention": (_one_jvp_each, _math_attention),
    "double backward": (_double_backward, _plain),
    "jacrev": (_rowwise_jacrev, _plain),
}
"""Derivative modes, fastest first. All give the same derivative; they differ in what they can enter."""


class Differential:
    """A batch function together with its derivative, in a mode that the function supports.

    Parameters
    ----------
    f
        Maps ``(N, d)`` to ``(N, ...)``, each row by itself. Trailing axes are flattened to one, of size D.
    jacobian
        Optional closed form ``(N, d) -> (N, D, d)``, used in place of automatic differentiation.
    mode
        A key of :data:`MODES`; by default found by trying them in order at the first call.

    Attributes
    ----------
    mode : str or None
        The mode in use: a key of :data:`MODES`, ``"closed form"``, or None before the first derivative.

    Raises
    ------
    ValueError
        If f is a module in training mode, has weights of another dtype or device than the points, cannot map
        the points, returns another number of rows, or has no derivative.

    Examples
    --------
    >>> f = Differential(lambda z: torch.stack([z[:, 0] * z[:, 1], z[:, 0] ** 2], 1))
    >>> value, tangents = f.tangents(torch.tensor([[2.0, 3.0]]), torch.eye(2)[:, None])
    >>> value.tolist(), tangents.tolist(), f.mode
    ([[6.0, 4.0]], [[[3.0, 4.0]], [[2.0, 0.0]]], 'jvp')
    """

    def __init__(self, f: Function, *, jacobian: Function | None = None, mode: str | None = None) -> None:
        if not callable(f):
            raise ValueError(f"expected a function of a tensor, got {type(f).__name__}; pass e.g. decoder.mean")
        if mode is not None and mode not in MODES:
            raise ValueError(f"unknown derivative mode {mode!r}; choose one of {', '.join(MODES)}")
        self._f, self._jacobian = f, jacobian
        self.mode = "closed form" if jacobian is not None else mode
        self._module = _owning_module(f)
        self._known: set[tuple[int, torch.dtype, torch.device]] = set()
        self._refuse_training()

    @property
    def name(self) -> str:
        """A short name of the function for messages."""
        return str(getattr(self._f, "__qualname__", type(self._f).__name__))

    def check(self, z: Tensor) -> None:
        """Refuse, with a remedy, points that the function cannot map. Cheap after the first call."""
        self._refuse_training()
        signature = (z.shape[-1], z.dtype, z.device)
        if signature in self._known:
            return
        self._check_weights(z)
        self._check_output(z)
        self._known.add(signature)

    def _refuse_training(self) -> None:
        if self._module is not None and self._module.training:
            raise ValueError(
                f"{self.name} belongs to a {type(self._module).__name__} in training mode, where dropout and "
                "batch statistics make the metric random; call .eval() on it first"
            )

    def _check_weights(self, z: Tensor) -> None:
        weights = next((p for p in self._module.parameters() if p.is_floating_point()), None) if self._module else None
        if weights is None:
            return
        if weights.dtype != z.dtype:
            raise ValueError(
                f"the points are {z.dtype} but the weights of {self.name} are {weights.dtype}; convert one, "
                f"e.g. z.to({weights.dtype}) or decoder.to({z.dtype})"
            )
        if weights.device != z.device:
            raise ValueError(
                f"the points are on {z.device} but the weights of {self.name} are on {weights.device}; "
                f"move one, e.g. z.to({str(weights.device)!r})"
            )

    def _check_output(self, z: Tensor) -> None:
        rows = z.reshape(-1, z.shape[-1])[:2].detach()
        if not len(rows):
            return
        try:
            with torch.no_grad():
                value = self._f(rows)
        except (RuntimeError, IndexError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{self.name} cannot map points of shape (n, {z.shape[-1]}): {reason}") from error
        if not isinstance(value, Tensor):
            raise ValueError(f"{self.name} returned {type(value).__name__}; it must return one tensor (n, ...)")
        if value.ndim < 2 or value.shape[0] != len(rows):
            raise ValueError(
                f"{self.name} mapped {len(rows)} points to shape {tuple(value.shape)}; it must keep the rows: "
                f"({len(rows)}, D)"
            )

    def __call__(self, z: Tensor) -> Tensor:
        """Value: ``(*, d) -> (*, D)``."""
        value = self._flat(z.reshape(-1, z.shape[-1]))
        return value.reshape(*z.shape[:-1], value.shape[-1])

    def _flat(self, z: Tensor) -> Tensor:
        return self._f(z).flatten(1)

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
        N, d = z.shape
        if self._jacobian is not None:
            return self._flat(z), self._jacobian(z).permute(2, 0, 1)
        return self.tangents(z, torch.eye(d, dtype=z.dtype, device=z.device)[:, None].expand(d, N, d))

    def tangents(self, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Value and directional derivatives: ``(N, d), (k, N, d) -> (N, D), (k, N, D)``."""
        if self._jacobian is not None:
            return self._flat(z), torch.einsum("nij,knj->kni", self._jacobian(z), directions)
        if len(z) == 0:
            value = self._flat(z)
            return value, value.new_zeros(len(directions), *value.shape)
        if self.mode is None:
            self.mode = self._first_working_mode(z[:1].detach(), directions[:, :1].detach())
        rule, context = MODES[self.mode]
        with context():
            # torch.func rejects expanded tensors whose rows share memory
            return rule(self._flat, z.contiguous(), directions.contiguous())

    def curvature(self, z: Tensor, w: Tensor) -> Tensor:
        """Hessian of z -> <w, f(z)> at each point, w held fixed: ``(N, d), (N, D) -> (N, d, d)``."""
        N, d = z.shape
        basis = torch.eye(d, dtype=z.dtype, device=z.device)[:, None].expand(d, N, d).contiguous()

        def weighted(x: Tensor) -> Tensor:
            return (w * self._flat(x)).sum()

        columns: Tensor = vmap(lambda v: jvp(grad(weighted), (z,), (v,))[1])(basis)
        return columns.permute(1, 2, 0)

    def _first_working_mode(self, z: Tensor, directions: Tensor) -> str:
        """Try the modes on one point. Which errors a network raises is not documented: any is a no."""
        last = ""
        for mode, (rule, context) in MODES.items():
            try:
                with context(), torch.no_grad():
                    rule(self._flat, z.contiguous(), directions.contiguous())
            except (RuntimeError, NotImplementedError, AttributeError) as error:
                last = str(error).strip().splitlines()[0]
            else:
                return mode
        raise ValueError(
            f"{self.name} has no derivative ({last}); it must be differentiable PyTorch code from input to "
            "output: no argmax, detach or numpy on the way"
        )


def _owning_module(f: Function) -> nn.Module | None:
    """Find the module that a function is or is a bound method of."""
    owner = f if isinstance(f, nn.Module) else getattr(f, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None
