"""Settings at the door: counts that are whole numbers, and values of the right type."""

from __future__ import annotations

import numbers
from typing import Any

__all__ = ["admit_count", "admit_type"]


def admit_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number of at least so much: True and 2.0 are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} is {value!r}; give an integer of at least {least}")


def admit_type(name: str, value: Any, kind: type, example: str) -> None:
    """Refuse what is neither None nor of a kind."""
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name} is {value!r}; give None or a {kind.__name__}, e.g. {example}")
