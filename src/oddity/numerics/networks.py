"""The network behind a function: found, run as it can be differentiated, refused where it cannot; its output read.

A decoder comes as a module, a method of one, a partial function or a closure. What can be seen of the module is
checked here; what cannot be seen shows when the function is tried (:mod:`oddity.numerics.autodiff`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from oddity.numerics.expansion import Expansion, layered_expansion

__all__ = [
    "Outputs",
    "bound",
    "eager",
    "has_parts",
    "module_behind",
    "name_of",
    "outputs_of",
    "parts_of",
    "plain",
    "refuse",
    "standing_for",
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


def refuse(f: Any) -> None:
    """Refuse, with a remedy, a network in training mode or one of integers.

    Raises
    ------
    ValueError
        If a part of the module is in training mode, or is quantised.
    """
    module = module_behind(f)
    if module is None:
        return
    whole = type(module).__name__
    for part in module.modules():
        kind = type(part).__name__ + ("" if part is module else f", a part of {whole},")
        if "quantized" in type(part).__module__ or any(_is_integer(p) for p in part.parameters(recurse=False)):
            raise ValueError(
                f"{kind} is quantised, and integers have no derivative; give the floating-point model that {whole} "
                "was made from"
            )
        if part.training:
            raise ValueError(
                f"{kind} is in training mode, where dropout and batch statistics make the metric random; call .eval() "
                "on the model first"
            )


def _is_integer(p: Tensor) -> bool:
    return p.is_quantized or not (p.is_floating_point() or p.is_complex()) or "quant" in type(p.data).__name__.lower()


def eager(f: Any) -> Any:
    """The same function without ``torch.compile``, whose closed graphs hide a network's layers."""
    f = f._modules.get("_orig_mod", f) if isinstance(f, nn.Module) else getattr(f, "_torchdynamo_orig_callable", f)
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
        MultivariateNormal, or to a mapping that holds one tensor.

    Examples
    --------
    >>> both = Outputs(lambda z: (2 * z, z.exp()))
    >>> both(torch.zeros(1, 2)).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """

    def __init__(self, decoder: Callable[..., Any]) -> None:
        self.__wrapped__ = eager(decoder)
        self._unseen = True

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
        output = self.__wrapped__(z)
        if isinstance(output, Mapping):
            output = self._only_tensor(output)
        if isinstance(output, tuple | list):
            return self._pair(output)
        return output if isinstance(output, Distribution) else (output, None)

    def _read(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        output = self.read(z)
        return self._normal(output) if isinstance(output, Distribution) else output

    def _only_tensor(self, output: Mapping[str, Any]) -> Tensor:
        found = [value for value in output.values() if isinstance(value, Tensor)]
        if len(found) != 1:
            raise ValueError(
                f"{name_of(self)} returned a {type(output).__name__} with {', '.join(map(str, output))}; choose one, "
                f"e.g. lambda z: decoder(z)[{next(iter(output), 'mean')!r}]"
            )
        return found[0]

    def _normal(self, output: Distribution) -> tuple[Tensor, Tensor]:
        output = plain(output)
        if isinstance(output, Normal):
            return output.loc, output.scale
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
        if self._unseen and bool((std < 0).any()):
            raise ValueError(
                f"the second output of {name_of(self)} is negative in places, hence no standard deviation; if it is a "
                "log-variance, give lambda z: (mean, (0.5 * log_variance).exp())"
            )
        self._unseen = False
        return mean, std


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
        return (bound(decoder.mean, given), known["mean"]), (bound(decoder.std, given), known["std"])
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
