"""Checks of settings at the door: each raises ValueError with the name, the value, and what is allowed."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

#: Seeds are below this: k-means takes 32 bits.
SEEDS = 1 << 32


def check_seed(seed: Any, seeds: int = SEEDS) -> None:
    """Refuse what is no seed.

    Examples
    --------
    >>> check_seed(2**32 - 1)
    >>> check_seed(None)
    Traceback (most recent call last):
    ValueError: seed=None: it must be a whole number from 0 to 4294967295
    """
    if not _is_whole(seed) or not 0 <= seed < seeds:
        raise ValueError(f"seed={seed!r}: it must be a whole number from 0 to {seeds - 1}")


def check_whole(least: int = 1, **settings: Any) -> None:
    """Refuse settings that are not whole numbers, or too small.

    Examples
    --------
    >>> check_whole(epochs=3, latent_dim=True)
    Traceback (most recent call last):
    ValueError: latent_dim=True: it must be a whole number, and at least 1
    """
    for name, value in settings.items():
        if not _is_whole(value) or value < least:
            raise ValueError(f"{name}={value!r}: it must be a whole number, and at least {least}")


def check_positive(**settings: Any) -> None:
    """Refuse settings that are not one positive and finite number each.

    Examples
    --------
    >>> check_positive(lr="a")
    Traceback (most recent call last):
    ValueError: lr='a': it must be one number, positive and finite
    """
    for name, value in settings.items():
        if not _is_real(value) or not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r}: it must be one number, positive and finite")


def check_not_negative(**settings: Any) -> None:
    """Refuse settings that are not one finite number each, zero or positive."""
    for name, value in settings.items():
        if not _is_real(value) or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}: it must be one finite number, and not negative")


def check_kind(kind: type, example: str, **settings: Any) -> None:
    """Refuse settings that are neither None nor of a kind.

    Examples
    --------
    >>> check_kind(float, "0.5", share="a")
    Traceback (most recent call last):
    ValueError: share='a': it must be None or a float, such as 0.5
    """
    for name, value in settings.items():
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name}={value!r}: it must be None or a {kind.__name__}, such as {example}")


def check_choice(choices: Iterable[str], **settings: Any) -> None:
    """Refuse settings that are none of some words.

    Examples
    --------
    >>> check_choice(("sigmoid", "tanh"), output="relu")
    Traceback (most recent call last):
    ValueError: output='relu': choose sigmoid or tanh
    """
    *others, last = choices
    for name, value in settings.items():
        if not isinstance(value, str) or value not in (*others, last):
            raise ValueError(f"{name}={value!r}: choose {', '.join(others)} or {last}")


def layers_of(sizes: Any, name: str = "hidden", least: int = 0) -> tuple[int, ...]:
    """Return the sizes of layers, or say what is wrong with them.

    Examples
    --------
    >>> layers_of([64, 32])
    (64, 32)
    >>> layers_of(8)
    Traceback (most recent call last):
    ValueError: hidden=8: name the size of each layer, such as hidden=(8,)
    """
    if isinstance(sizes, str) or not isinstance(sizes, Iterable):
        example = f"({sizes},)" if _is_whole(sizes) else "(64, 32)"
        raise ValueError(f"{name}={sizes!r}: name the size of each layer, such as {name}={example}")
    sizes = tuple(sizes)
    if len(sizes) < least:
        what = "convolution, each of at least one map" if name == "channels" else "layer, each of at least one unit"
        raise ValueError(f"{name}={sizes}: name at least one {what}")
    if any(not _is_whole(units) or units < 1 for units in sizes):
        raise ValueError(f"{name}={sizes}: name whole numbers, at least one unit in each layer")
    return tuple(int(units) for units in sizes)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
