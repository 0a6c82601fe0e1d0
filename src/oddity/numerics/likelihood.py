"""A decoder as a likelihood: from points to laws, checked once at the door."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution, Normal, constraints

from oddity.numerics.autodiff import usable
from oddity.numerics.networks import (
    form_of,
    has_parts,
    module_behind,
    name_of,
    outputs_of,
    parts_of,
    plain,
    refuse,
    standing_for,
)

__all__ = ["Likelihood", "parameters", "refuse_invalid", "rows"]


class Likelihood:
    """The law p(x | z) of a decoder, in any of the ways in which decoders say it.

    Parameters
    ----------
    decoder
        z ``(N, d) ->`` a distribution, or ``(mean, std)`` of a Normal one; or an object with ``mean(z)`` and
        ``std(z)``.
    given
        What the decoder takes beside z, by name: see :func:`~oddity.numerics.networks.bound`.

    Attributes
    ----------
    name : str
        A short name of the decoder for messages.
    modules : list of Module
        The networks behind it, as far as they can be seen.

    Raises
    ------
    ValueError
        If the decoder is neither; at a call, if it gives no distribution, or one that does not keep the rows.

    Examples
    --------
    >>> import torch
    >>> likelihood = Likelihood(lambda z: (z.sin(), z.exp()))
    >>> likelihood(torch.zeros(3, 2))
    Normal(loc: torch.Size([3, 2]), scale: torch.Size([3, 2]))
    """

    def __init__(self, decoder: Any, given: Mapping[str, Any] | None = None) -> None:
        if has_parts(decoder):
            (mean, _), (std, _) = parts_of(decoder, given or {})
            self._read: Callable[[Tensor], Any] = lambda z: (rows(mean(z)), rows(std(z)))
            behind = [mean, std]
        else:
            outputs, _ = outputs_of(decoder, given or {})
            self._read, behind = outputs.read, [outputs]
        self._read, self.name = usable(self._read), name_of(decoder)
        whole = [decoder] if isinstance(decoder, nn.Module) else [module_behind(f) for f in behind]
        self.modules = list(dict.fromkeys(module for module in whole if module is not None))
        self._seen = self.modules[0] if self.modules else decoder

    @property
    def form(self) -> str:
        """How the decoder's output is read where that is a guess, see :func:`~oddity.numerics.networks.form_of`."""
        return form_of(self._read)

    def refuse(self) -> None:
        """Refuse networks in training mode or of integers, as :func:`~oddity.numerics.networks.refuse` does."""
        refuse(*self.modules)

    def __call__(self, z: Tensor) -> Distribution:
        """The law at points ``(N, d)``; invalid parameters pass, see :func:`refuse_invalid`."""
        with _unchecked():
            law = self._law(z)
        base = plain(law)
        shape = base.batch_shape + base.event_shape
        if len(shape) == 0 or shape[0] != len(z):
            raise ValueError(
                f"{self.name} mapped {len(z)} points to a {type(base).__name__} law of shape {tuple(shape)}; it must "
                f"keep the rows: ({len(z)}, ...)"
            )
        return law

    def _law(self, z: Tensor) -> Distribution:
        out = self._read(z)
        if isinstance(out, Distribution):
            return out
        mean, std = out
        if std is None:
            raise ValueError(
                f"{self.name} returned {type(mean).__name__}; a likelihood is a torch.distributions Distribution, "
                "e.g. Bernoulli(logits=net(z)). For a mean alone use Pullback(decoder)"
            )
        return Normal(mean, std)

    def of(self, function: Callable[[Any], Tensor]) -> Callable[[Tensor], Tensor]:
        """A function of the law as a function of z, ``(N, d) -> (N, D)``, named after the decoder and belonging to it.

        The law comes without ``Independent`` around it.
        """

        def of_point(z: Tensor) -> Tensor:
            return rows(function(plain(self(z))))

        of_point.__qualname__ = self.name
        found: Callable[[Tensor], Tensor] = standing_for(self._seen, of_point)
        return found


def rows(x: Tensor) -> Tensor:
    """All that belongs to one point in one row: ``(N, ...) -> (N, D)``."""
    return x[:, None].flatten(1)


@contextmanager
def _unchecked() -> Iterator[None]:
    """Without the checks of ``torch.distributions``: a point that a solver tries in vain must not raise.

    Their switch is global, so the first thread in turns it off and the last one out sets it as it was.
    """
    with _SWITCH:
        if not _inside:
            _before.append(Distribution._validate_args)
            Distribution.set_default_validate_args(False)
        _inside.append(None)
    try:
        yield
    finally:
        with _SWITCH:
            _inside.pop()
            if not _inside:
                Distribution.set_default_validate_args(_before.pop())


_SWITCH = Lock()
_inside: list[None] = []
_before: list[bool] = []


def parameters(law: Distribution) -> dict[str, Tensor]:
    """Parameters that the law was made of, by name."""
    given = [name for name in law.arg_constraints if name in law.__dict__]  # of probs and logits one only
    names = given or [name for name in law.arg_constraints if name != "logits"]  # held by another law inside
    return {name: value for name in names if isinstance(value := getattr(law, name), Tensor)}


def refuse_invalid(law: Distribution, name: str) -> None:
    """Refuse a law with parameters outside their range, NaN and infinity among them."""
    for parameter, value in parameters(law).items():
        constraint, advice = law.arg_constraints[parameter], "mend it inside the decoder, e.g. by softplus or clamp"
        bad = value[value.isnan() if parameter == "logits" else ~value.isfinite()]  # -inf rules a class out
        if len(bad):
            raise ValueError(f"{name} gives a {type(law).__name__} law whose {parameter} holds {bad[0]:.4g}; {advice}")
        if value.numel() and not _holds(constraint, value):
            raise ValueError(
                f"{name} gives a {type(law).__name__} law whose {parameter} holds {float(value.min()):.4g}, against "
                f"its constraint {constraint}; {advice}"
            )


def _holds(constraint: constraints.Constraint, value: Tensor) -> bool:
    return constraints.is_dependent(constraint) or bool(constraint.check(value).all())
