"""A decoder as a likelihood: from points to laws, checked once at the door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from torch import Tensor
from torch.distributions import Distribution, Normal, constraints

from oddity.numerics.networks import has_parts, plain

__all__ = ["Likelihood", "parameters", "refuse_invalid", "rows"]


class Likelihood:
    """The law p(x | z) of a decoder, in any of the ways in which decoders say it.

    Parameters
    ----------
    decoder
        z ``(N, d) ->`` a distribution, or ``(mean, std)`` of a Normal one; or an object with ``mean(z)`` and
        ``std(z)``.

    Attributes
    ----------
    name : str
        A short name of the decoder for messages.

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

    def __init__(self, decoder: Any) -> None:
        self._gaussian = has_parts(decoder)
        if isinstance(decoder, Tensor) or not (self._gaussian or callable(decoder)):
            raise ValueError(f"expected a decoder z -> Distribution, got {type(decoder).__name__}")
        self.decoder = decoder
        self.name = str(getattr(decoder, "__qualname__", type(decoder).__name__))

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
        if self._gaussian:
            return Normal(rows(self.decoder.mean(z)), rows(self.decoder.std(z)))
        out = self.decoder(z)
        if isinstance(out, tuple) and len(out) == 2 and all(isinstance(part, Tensor) for part in out):
            return Normal(*out)
        if not isinstance(out, Distribution):
            raise ValueError(
                f"{self.name} returned {type(out).__name__}; a likelihood is a torch.distributions Distribution, "
                "e.g. Bernoulli(logits=net(z)). For a mean alone use Pullback(decoder)"
            )
        return out

    def of(self, function: Callable[[Any], Tensor]) -> Callable[[Tensor], Tensor]:
        """A function of the law as a function of z, ``(N, d) -> (N, D)``, named after the decoder and belonging to it.

        The law comes without ``Independent`` around it.
        """

        def of_point(z: Tensor) -> Tensor:
            return rows(function(plain(self(z))))

        of_point.__qualname__ = self.name
        of_point.__wrapped__ = self.decoder  # type: ignore[attr-defined]
        return of_point


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
