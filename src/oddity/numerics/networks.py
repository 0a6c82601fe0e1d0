"""The network behind a function: found, run as it can be differentiated, refused where it cannot; its output read.

A decoder comes as a module, a method of one, a partial function or a closure. What can be seen of its modules is
checked here; what cannot be seen shows when the function is tried (:mod:`oddity.numerics.autodiff`).
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import inspect
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from oddity.numerics.ambient import bare, doors
from oddity.numerics.expansion import Expansion, layered_expansion

__all__ = [
    "Deviation",
    "Outputs",
    "Standing",
    "behind",
    "bound",
    "eager",
    "evaluation",
    "form_of",
    "has_parts",
    "module_behind",
    "name_of",
    "names_of",
    "outputs_of",
    "parts_of",
    "plain",
    "refuse",
    "standing_for",
    "untouched",
]

Function = Callable[[Tensor], Tensor]
Part = tuple[Function, Callable[[Tensor], Expansion] | None]  # with its expansion in closed form, where there is one


def _within(f: Any) -> Any:
    """What a callable stands for: the function of a partial, the object of a method, the original of a wrapper."""
    if isinstance(f, nn.Module):
        return None
    if isinstance(f, functools.partial):
        return f.func
    owner = getattr(f, "__self__", None)
    return getattr(f, "__wrapped__", None) if owner is None else owner


def module_behind(f: Any) -> nn.Module | None:
    """Find the module that a function is, is a method of, or wraps; None where it cannot be seen."""
    while f is not None and not isinstance(f, nn.Module):
        f = _within(f)
    return f


def name_of(f: Any) -> str:
    """A short name of a function for messages: that of what it stands for."""
    while isinstance(f, functools.partial) or hasattr(getattr(f, "__self__", f), "__wrapped__"):
        f = _within(f)
    return str(getattr(f, "__qualname__", type(f).__name__))


def behind(f: Any) -> tuple[list[nn.Module], list[Tensor]]:
    """Modules and tensors that a function's code leads to, through closures, globals, partials, attributes, helpers.

    Each dotted name is followed as far as it is written, so that of ``model.decoder(z)`` the decoder counts alone.

    Examples
    --------
    >>> model = nn.ModuleDict({"encoder": nn.Linear(3, 2), "decoder": nn.Linear(2, 3)})
    >>> behind(lambda z: torch.tanh(model.decoder(z)))[0]
    [Linear(in_features=2, out_features=3, bias=True)]
    """
    modules, tensors, seen, ahead = list[nn.Module](), list[Tensor](), dict[int, Any](), deque([f])
    while ahead and len(seen) < _FARTHEST:
        x = ahead.popleft()
        if id(x) in seen:
            continue
        seen[id(x)] = x  # kept, so that its number is not given to another
        if isinstance(x, nn.Module):
            modules.append(x)
        elif isinstance(x, Tensor):
            tensors.append(x)
        else:
            ahead += _held(x)
    return modules, tensors


_FARTHEST = 1000  # things looked at, the nearest first: a function that leads to more is no decoder
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "scipy", "sklearn", "oddity"}  # whose code names no network
_NAMES = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FAST")
_NOTHING = object()


def _from_library(x: Any) -> bool:
    """Whether a function or class is a library's, which knows what it is given alone; not an example in its text."""
    example = isinstance(x, types.FunctionType) and x.__code__.co_filename.startswith("<doctest")
    return (x.__module__ or "").partition(".")[0] in _LIBRARIES and not example


def _held(x: Any) -> list[Any]:
    """What a thing leads to, one step on."""
    match x:
        case functools.partial():
            return [x.func, *x.args, *x.keywords.values()]
        case types.MethodType():
            return _of_function(x.__func__, x.__self__)
        case types.FunctionType():
            return _of_function(x)
        case list() | tuple() | set() | frozenset():
            return list(x)
        case dict():
            return list(x.values())
        case type() | types.ModuleType() | str() | bytes():
            return []
    call = inspect.getattr_static(type(x), "__call__", None)
    if isinstance(call, types.FunctionType) and not _from_library(type(x)):
        return [types.MethodType(call, x), _attributes(x).get("__wrapped__")]
    return [value for value in _attributes(x).values() if not isinstance(value, Tensor)]  # which may serve other ends


def _of_function(f: Any, owner: Any = _NOTHING) -> list[Any]:
    """What a function's code names, and the defaults of its arguments."""
    if not isinstance(f, types.FunctionType):
        return [owner, f]
    known = dict(zip(f.__code__.co_freevars, map(_content, f.__closure__ or ()), strict=True))
    if _from_library(f):
        return [owner, *known.values()]
    if owner is not _NOTHING and f.__code__.co_argcount:
        known[f.__code__.co_varnames[0]] = owner
    wrapped = getattr(f, "__wrapped__", None)
    if owner is not _NOTHING and isinstance(wrapped, types.FunctionType):
        wrapped = types.MethodType(wrapped, owner)
    defaults = [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
    return [wrapped, *defaults, *_named(f.__code__, known, f.__globals__)]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet bound
        return None


def _named(code: types.CodeType, known: Mapping[str, Any], names: Mapping[str, Any]) -> Iterator[Any]:
    """What the dotted names of a function's code stand for, those of functions within it too."""
    value = _NOTHING
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and value is not _NOTHING:
            inner = _attribute(value, step.argval)
            if inner is _NOTHING:
                yield value
            value = inner
        else:
            if value is not _NOTHING:
                yield value
            value = _NOTHING
            if step.opname.startswith(_NAMES):  # newer Pythons load two at once
                *before, name = step.argval if isinstance(step.argval, tuple) else (step.argval,)
                yield from (known[other] for other in before if other in known)
                value = names.get(name, _NOTHING) if "GLOBAL" in step.opname else known.get(name, _NOTHING)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _named(inner, known, names)


def _attribute(x: Any, name: str) -> Any:
    """An attribute where it lies, with no code of x run; a method bound, a property by its function."""
    if isinstance(x, nn.Module):
        return dict(x.named_children()).get(name, _NOTHING)
    if name in _attributes(x):
        return _attributes(x)[name]
    found = inspect.getattr_static(type(x), name, None)
    if isinstance(found, types.MemberDescriptorType) or type(found).__name__ == "_tuplegetter":  # slots, named tuples
        return getattr(x, name, _NOTHING)
    found = found.fget if isinstance(found, property) else getattr(found, "func", found)
    return types.MethodType(found, x) if isinstance(found, types.FunctionType) else _NOTHING


def _attributes(x: Any) -> Mapping[str, Any]:
    return getattr(x, "__dict__", {})


def names_of(f: Any) -> list[Any]:
    """What can be called by a function's closure and global names, at the time of a call: they may be bound anew."""
    while f is not None and not isinstance(f, types.FunctionType):
        f = _within(f)
    if f is None:
        return []
    named = (*map(_content, f.__closure__ or ()), *map(f.__globals__.get, f.__code__.co_names))
    return [x for x in named if callable(x)]


def form_of(f: Any) -> str:
    """How a decoder's outputs are read, see :class:`Outputs`, as far as they have been seen."""
    while f is not None and not isinstance(f, Outputs):
        f = _within(f)
    return "" if f is None else f.form


def refuse(*modules: nn.Module) -> None:
    """Refuse, with a remedy, networks of integers, and those in training mode where that changes what they compute.

    Raises
    ------
    ValueError
        If a part of a module is quantised, or makes use of training mode and is in it.
    """
    for module in modules:
        for part in module.modules():
            whole = type(module).__name__
            kind = type(part).__name__ + ("" if part is module else f", a part of {whole},")
            if "quantized" in type(part).__module__ or any(_is_integer(p) for p in part.parameters(recurse=False)):
                raise ValueError(
                    f"{kind} is quantised, and integers have no derivative; give the floating-point model that {whole} "
                    "was made from"
                )
            if part.training and _heeds_training(part):
                raise ValueError(
                    f"{kind} is in training mode, where dropout and batch statistics make the metric random; "
                    f"{evaluation(module)}"
                )


def evaluation(*modules: nn.Module) -> str:
    """How networks are brought into evaluation mode: what was captured in training mode stays in it."""
    captured = torch.jit.TopLevelTracedModule, torch.fx.GraphModule  # type: ignore[attr-defined]
    if any(isinstance(m, captured) for m in modules):
        return "trace or export it again from its model in evaluation mode, after .eval()"
    return "call .eval() on the model first"


def _heeds_training(part: nn.Module) -> bool:
    """Whether training mode changes what a module computes, as far as its code tells: its hooks may ask too."""
    if isinstance(part, torch.fx.GraphModule):  # captured in one mode
        return False
    if isinstance(part, torch.jit.ScriptModule):
        return "training" in getattr(part, "code", "")
    if part._forward_hooks or part._forward_pre_hooks:
        return True
    if type(part).__module__.startswith("torch.nn.modules."):
        rate = getattr(part, "p", getattr(part, "dropout", None))
        if isinstance(part, nn.TransformerEncoder | nn.TransformerEncoderLayer) or rate == 0:
            return False  # asks, for a shorter way to the same numbers, or for the share of nothing
    own = [c for c in type(part).__mro__ if c not in nn.Module.__mro__]
    functions = [f for c in own for name, f in vars(c).items() if name not in ("__init__", "train", "eval")]
    return any("training" in _words(f.__code__) for f in functions if isinstance(f, types.FunctionType))


def _words(code: types.CodeType) -> set[Any]:
    """Names and texts in a function's code."""
    inner = [_words(x) for x in code.co_consts if isinstance(x, types.CodeType)]
    return set(code.co_names).union((x for x in code.co_consts if isinstance(x, str)), *inner)


@contextmanager
def untouched(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    """A function is tried within, and leaves no trace: buffers of its modules and random states are put back."""
    before = [
        (part, name, b, b.clone())
        for m in modules
        for part in m.modules()
        for name, b in part._buffers.items()
        if b is not None
    ]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for part, name, buffer, value in before:
            if part._buffers[name] is not buffer:
                part._buffers[name] = buffer
            if not torch.equal(buffer, value):
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(value)


def _is_integer(p: Tensor) -> bool:
    return p.is_quantized or not (p.is_floating_point() or p.is_complex()) or "quant" in type(p.data).__name__.lower()


def eager(f: Any) -> Any:
    """The same function without ``torch.compile``, whose closed graphs hide a network's layers."""
    f = getattr(f, "_orig_mod" if isinstance(f, nn.Module) else "_torchdynamo_orig_callable", f)
    module = module_behind(f)
    if module is None or not any("_orig_mod" in m._modules or m._compiled_call_impl for m in module.modules()):
        return f
    return standing_for(f, torch.compiler.disable(lambda z: f(z)))  # a compiled part inside


def standing_for(f: Any, g: Any) -> Any:
    """Mark g as a wrapper of f."""
    g.__wrapped__ = f
    return g


def bound(f: Any, given: Mapping[str, Any]) -> Any:
    """The function of z alone with all other arguments given; a tensor of one row is repeated for every point.

    Examples
    --------
    >>> f = bound(lambda z, y: torch.cat([z, y], 1), {"y": torch.ones(1, 3)})
    >>> f(torch.zeros(5, 2)).shape
    torch.Size([5, 5])
    """
    if not given:
        return f

    def repeated(value: Any, n: int) -> Any:
        one_row = isinstance(value, Tensor) and value.ndim > 0 and len(value) == 1
        return value.expand(n, *value.shape[1:]) if one_row else value

    return standing_for(f, lambda z: f(z, **{name: repeated(value, len(z)) for name, value in given.items()}))


class Outputs:
    """A decoder's output, read: as a mean and a standard deviation, flattened, or as a law (:meth:`read`).

    Parameters
    ----------
    decoder
        Maps ``(N, d)`` to a mean ``(N, ...)``, a pair (mean, std), a Normal, an Independent one or a
        MultivariateNormal, or to a mapping or dataclass with a mean and a std, or of one tensor.

    Attributes
    ----------
    form : str
        How the last output was read where that is not plain, for users to see: ``"(mean, std)"``, else ``""``.

    Examples
    --------
    >>> both = Outputs(lambda z: (2 * z, z.exp()))
    >>> both(torch.zeros(1, 2)).tolist(), both.form
    ([[0.0, 0.0, 1.0, 1.0]], '(mean, std)')
    """

    def __init__(self, decoder: Callable[..., Any]) -> None:
        self.__wrapped__ = eager(decoder)
        self.form = ""

    def __call__(self, z: Tensor) -> Tensor:
        """Mean and standard deviation side by side, or the mean alone: ``(N, d) -> (N, D or 2 D)``.

        The map whose pull-back of flat space is the expected metric. With correlated noise, x = mean + L eps, all of L
        stands beside the mean.
        """
        mean, std = self._read(z)
        return mean if std is None else torch.cat([mean.flatten(1), std.flatten(1)], 1)

    def mean(self, z: Tensor) -> Tensor:
        """The mean: ``(N, d) -> (N, ...)``."""
        return self._read(z)[0]

    def std(self, z: Tensor) -> Tensor:
        """The standard deviation: ``(N, d) -> (N, ...)``."""
        mean, std = self._read(z)
        if std is None:
            raise ValueError(
                f"{name_of(self)} gives a mean and no standard deviation; fit one to the data, "
                "oddity.add_uncertainty(decoder, z, x)"
            )
        if std.shape != mean.shape:
            raise ValueError(f"{name_of(self)} gives correlated noise; a standard deviation for each output is needed")
        return std

    def read(self, z: Tensor) -> Distribution | tuple[Tensor, Tensor | None]:
        """What the decoder says of points ``(N, d)``: a law, a mean with its standard deviation, or a mean alone."""
        output = self._by_name(self.__wrapped__(z))
        if isinstance(output, tuple | list):
            self.form = "(mean, std)"
            return self._pair(output)
        return output if isinstance(output, Distribution) else (output, None)

    def _read(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        output = self.read(z)
        return self._normal(output) if isinstance(output, Distribution) else output

    def _by_name(self, output: Any) -> Any:
        """Mean and std, or the only tensor, of a mapping, a dataclass or a named tuple; else the output as it is."""
        kind, named = type(output).__name__, output
        if dataclasses.is_dataclass(output) and not isinstance(output, type | Mapping):
            named = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
        elif isinstance(output, tuple) and hasattr(output, "_asdict"):
            named = output._asdict()
        if not isinstance(named, Mapping):
            return output
        found = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        if "mean" in found and "std" in found:
            return found["mean"], found["std"]
        if len(found) == 1:
            return next(iter(found.values()))
        raise ValueError(
            f"{name_of(self)} returned a {kind} with {', '.join(map(str, named))}; choose one, e.g. "
            f"lambda z: decoder(z){_item(named is output, next(iter(named), 'mean'))}, or name two of them mean and std"
        )

    def _normal(self, output: Distribution) -> tuple[Tensor, Tensor]:
        output = plain(output)
        if isinstance(output, Normal):
            return output.loc, positive(output.scale, self)
        if isinstance(output, MultivariateNormal):
            return output.loc, output.scale_tril
        raise ValueError(
            f"{name_of(self)} returned a {type(output).__name__}, and the expected metric is that of normal noise; the "
            "metric that belongs to any likelihood is oddity.fisher_metric(decoder)"
        )

    def _pair(self, output: Any) -> tuple[Tensor, Tensor]:
        kinds = ", ".join(type(value).__name__ for value in output)
        if len(output) != 2 or not all(isinstance(value, Tensor) for value in output):
            raise ValueError(
                f"{name_of(self)} returned a {type(output).__name__} of {kinds or 'nothing'}; it must be a mean, or a "
                "pair of tensors (mean, std): choose, e.g. lambda z: decoder(z)[0]"
            )
        mean, std = output
        try:
            if std.ndim > 1 and len(std) != len(mean):
                raise RuntimeError
            std = std.expand_as(mean)
        except RuntimeError:
            raise ValueError(
                f"{name_of(self)} returned tensors of shape {tuple(mean.shape)} and {tuple(std.shape)}, which are no "
                "mean and standard deviation: choose, e.g. lambda z: decoder(z)[0]"
            ) from None
        return mean, positive(std, self)


def positive(std: Tensor, decoder: Any) -> Tensor:
    """The standard deviation, or a refusal: what is negative anywhere is something else; zero is no noise."""
    if bool((bare(std) < 0).any()):
        raise ValueError(
            f"the std of {name_of(decoder)} is negative in places, hence no standard deviation; if it is a "
            "log-variance, give lambda z: (mean, (0.5 * log_variance).exp())"
        )
    return std


@doors
class Standing:
    """A function in the place of another, as a door; unlike a local function it can be pickled where that one can.

    Examples
    --------
    >>> Standing(torch.sin)(torch.zeros(1)).tolist()
    [0.0]
    """

    def __init__(self, f: Function) -> None:
        self.__wrapped__ = f

    def __call__(self, z: Tensor) -> Tensor:
        """What it gives."""
        return self.__wrapped__(z)


class Deviation(Standing):
    """A standard deviation that is refused where it is negative."""

    def __call__(self, z: Tensor) -> Tensor:
        """The same, see :func:`positive`."""
        return positive(self.__wrapped__(z), self)


def _item(mapping: bool, name: Any) -> str:
    return f"[{name!r}]" if mapping else f".{name}"


def plain(law: Distribution) -> Distribution:
    """The law without ``Independent`` around it, which sums log densities and changes no Fisher metric."""
    while isinstance(law, Independent):
        law = law.base_dist
    return law


def has_parts(decoder: Any) -> bool:
    """Whether the decoder is an object with ``mean(z)`` and ``std(z)``; a tensor has those too, of another kind."""
    return not isinstance(decoder, Tensor) and all(callable(getattr(decoder, part, None)) for part in ("mean", "std"))


def parts_of(decoder: Any, given: Mapping[str, Any]) -> tuple[Part, Part]:
    """Mean and standard deviation of a decoder of any kind, all arguments but z given."""
    if has_parts(decoder):
        known = {part: None if given else getattr(decoder, f"expand_{part}", None) for part in ("mean", "std")}
        std = bound(decoder.std, given)
        if isinstance(std, nn.Sequential) and isinstance(std[-1], nn.Softplus | nn.Sigmoid):  # nowhere negative
            known["std"] = known["std"] or layered_expansion(std)
        return (bound(decoder.mean, given), known["mean"]), (Deviation(std), known["std"])
    outputs, expansion = outputs_of(decoder, given)
    return (outputs.mean, expansion), (outputs.std, None)


def outputs_of(decoder: Any, given: Mapping[str, Any]) -> tuple[Outputs, Callable[[Tensor], Expansion] | None]:
    """The outputs of a callable decoder, and the closed form of a network of known layers.

    Raises
    ------
    ValueError
        If the decoder cannot be called, or is a whole autoencoder.
    """
    kind = type(decoder).__name__
    if not callable(decoder):
        raise ValueError(f"{kind} is no decoder: give a module or function of z, or an object with mean(z) and std(z)")
    part = next((part for part in ("decode", "decoder") if callable(getattr(decoder, part, None))), None)
    if part and hasattr(decoder, "encoder"):
        raise ValueError(f"{kind} has an encoder too; give the part that maps codes to data, e.g. model.{part}")
    outputs = Outputs(bound(decoder, given))
    net = outputs.__wrapped__
    whole = isinstance(net, nn.Module) and not given
    return outputs, layered_expansion(net) if whole else None
