"""What PyTorch remembers around a call, and what of it must not reach an answer.

Under autocast products are rounded to two digits, in inference mode nothing can be differentiated afterwards, and the
levels of forward derivatives are counted for all threads together. None of these raises where a number goes wrong, so
public functions are *doors* (:func:`door`, :func:`doors`): they shut the first two out, and what enters forward mode
or turns a switch of the whole process does so :func:`alone`.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["alone", "bare", "door", "doors", "is_transformed", "is_vectorised", "own"]

_F = TypeVar("_F", bound=Callable[..., Any])
_C = TypeVar("_C", bound=type)

_DEVICES = ("cpu", "cuda", "mps", "xpu")  # that have an autocast of their own
_in_inference_mode = torch.is_inference_mode_enabled
_turn = threading.RLock()


def alone() -> AbstractContextManager[bool]:
    """One thread at a time, and the same thread again within: for what PyTorch keeps once for the whole process."""
    return _turn


def _renew() -> None:
    """A fork has only the thread that forked: whoever else had the turn never gives it back."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def door(f: _F) -> _F:
    """Make a function public: neither its answers nor what can be done with them depend on where it is called.

    Autocast is off within, and inference mode is ``no_grad``; tensors that were made in inference mode, which autograd
    refuses, are cloned on the way in. Whether gradients are recorded is the caller's choice, and so is the precision of
    a model in training mode, or one that is handed half-precision tensors, as a part of somebody's loss is. Nests; a
    microsecond where all is plain.

    Examples
    --------
    >>> halved = door(lambda x: torch.mm(x, x) / 2)
    >>> x = torch.tensor([[1.0 + 2**-10]])
    >>> with torch.autocast("cpu", dtype=torch.bfloat16):
    ...     bool(torch.mm(x, x) / 2 == halved(x))
    False
    >>> with torch.inference_mode():
    ...     y = halved(x)
    >>> y.is_inference(), y.requires_grad
    (False, False)
    """
    assert not inspect.isgeneratorfunction(f), "its body would run outside"

    @functools.wraps(f)
    def fenced(*args: Any, **given: Any) -> Any:
        if _in_inference_mode() or _in_autocast():
            with _fence(autocast=_is_training(args)):
                return f(*map(own, args), **own(given))
        for x in args:
            if isinstance(x, Tensor) and x.is_inference():
                args = tuple(map(own, args))
                break
        return f(*args, **own(given)) if given else f(*args)

    return fenced  # type: ignore[return-value]


def doors(kind: _C) -> _C:
    """Make every public method, property and constructor that a class itself defines a door."""
    for name, x in list(vars(kind).items()):
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(x, cached_property):
            x.func = door(x.func)
        elif isinstance(x, property):
            setattr(kind, name, property(door(x.fget), x.fset, x.fdel) if x.fget else x)
        elif isinstance(x, classmethod | staticmethod):
            setattr(kind, name, type(x)(door(x.__func__)))
        elif inspect.isfunction(x):
            setattr(kind, name, door(x))
    return kind


def own(x: Any) -> Any:
    """The same, but a tensor made in inference mode is cloned; also those in a list, a tuple or a dictionary."""
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x
    if type(x) in (list, tuple):
        return type(x)(map(own, x))
    return {name: own(value) for name, value in x.items()} if type(x) is dict else x


def bare(x: Tensor) -> Tensor:
    """The numbers of a tensor below all transforms of ``torch.func``, which let no number be asked for."""
    while is_transformed(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.detach()


def is_transformed(x: Tensor) -> bool:
    """Whether a transform of ``torch.func`` follows the tensor."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def is_vectorised(x: Tensor) -> bool:
    """Whether the tensor is one item of a batch under ``torch.func.vmap``, so that no number can be asked for."""
    while is_transformed(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


_in_autocast: Callable[[], bool] = getattr(  # asked at every call, so in one question where there is one
    torch._C, "_is_any_autocast_enabled", lambda: any(map(torch.is_autocast_enabled, _DEVICES))
)


def _is_training(args: tuple[Any, ...]) -> bool:
    """Whether a method is called within a loss under autocast: whoever trains a model chooses its precision."""
    owner = args[0] if args else None
    halved = any(isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) for x in args)
    return isinstance(owner, nn.Module) and (getattr(owner, "training", False) or halved)  # a new one has no mode yet


@contextmanager
def _fence(*, autocast: bool) -> Iterator[None]:
    with ExitStack() as inside:
        if _in_inference_mode():
            inside.enter_context(torch.inference_mode(False))  # which turns gradients on
            inside.enter_context(torch.no_grad())
        for device in () if autocast else filter(torch.is_autocast_enabled, _DEVICES):
            inside.enter_context(torch.autocast(device, enabled=False))
        yield
