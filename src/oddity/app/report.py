"""What a run found: geodesics beside their straight lines, as a table, as arrays and as a summary."""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from rich.table import Table
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from oddity._version import __version__
from oddity.app.files import replacing
from oddity.geometry.curve import Geodesic
from oddity.geometry.manifold import Manifold
from oddity.geometry.roadmap import Roadmap

_LINE_SEGMENTS = 512


@dataclass(frozen=True)
class Connections:
    """Geodesics between k pairs of places, beside the straight lines between them.

    Attributes
    ----------
    names : sequence of pairs of str
        What the two ends of each are called.
    geodesic : Geodesic
        A batch of k.
    straight_length : Tensor, shape (k,)
        The Riemannian lengths of the straight lines.
    """

    names: Sequence[tuple[str, str]]
    geodesic: Geodesic
    straight_length: Tensor

    @classmethod
    def between(
        cls, M: Manifold, a: Tensor, b: Tensor, names: Sequence[tuple[str, str]], roads: Roadmap | None = None
    ) -> "Connections":
        """Join the rows of a (k, d) to the rows of b (k, d), starting from the roads where there are any.

        Examples
        --------
        >>> import oddity
        >>> a, b = torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> found = Connections.between(oddity.Sphere(2), a, b, [("west", "east")])
        >>> round(float(found.straight_length[0]), 3), found.straight.shape == found.geodesic.points.shape
        (3.142, True)
        """
        g = M.geodesic(a, b, init=roads)
        with torch.no_grad():
            straight_length = M.length(_line(a, b, _LINE_SEGMENTS))
        return cls(names, g, straight_length)

    @property
    def ratio(self) -> Tensor:
        """Length of the geodesic over that of its straight line: (k,); NaN where both are zero."""
        return self.geodesic.length / self.straight_length

    @property
    def straight(self) -> Tensor:
        """The straight lines on as many nodes as the geodesics: (k, n + 1, d)."""
        points = self.geodesic.points
        return _line(points[:, 0], points[:, -1], points.shape[1] - 1)

    def titles(self) -> list[str]:
        """A title for each pair, with both lengths."""
        lengths = zip(self.names, self.geodesic.length.tolist(), self.straight_length.tolist(), strict=True)
        return [
            f"{a} to {b}: length {length:.4g} along the geodesic, {straight:.4g} along the straight line"
            for (a, b), length, straight in lengths
        ]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, none of them of objects."""
        return {
            "points": self.geodesic.points.numpy(),
            "straight": self.straight.numpy(),
            "length": self.geodesic.length.numpy(),
            "length_error": self.geodesic.length_error.numpy(),
            "straight_length": self.straight_length.numpy(),
            "converged": self.geodesic.converged.numpy(),
            "why": np.asarray(self.geodesic.why, dtype=str),
            "names": np.asarray(self.names, dtype=str),
        }

    def records(self) -> list[dict[str, Any]]:
        """One dictionary a pair, of JSON's own types."""
        return [
            {
                "from": a,
                "to": b,
                "straight_length": _finite_or_none(self.straight_length[i]),
                "length": _finite_or_none(self.geodesic.length[i]),
                "ratio": _finite_or_none(self.ratio[i]),
                "converged": bool(self.geodesic.converged[i]),
                "why": self.geodesic.why[i],
            }
            for i, (a, b) in enumerate(self.names)
        ]

    def table(self) -> Table:
        """The lengths of each pair, their ratio, and whether to believe them."""
        table = Table(title="geodesics of the expected metric")
        table.add_column("from")
        table.add_column("to")
        for heading in ("straight length", "geodesic length", "ratio"):
            table.add_column(heading, justify="right")
        table.add_column("converged, or why not")
        for record in self.records():
            numbers = [_shown(record[key]) for key in ("straight_length", "length", "ratio")]
            verdict = "converged" if record["converged"] else record["why"]
            table.add_row(record["from"], record["to"], *numbers, verdict)
        return table


def agreement(clusters: ArrayLike, classes: ArrayLike) -> dict[str, float]:
    """Say how well clusters agree with classes: one where they are the same up to names.

    The F-measure is the mean over the codes of the best F1 that any cluster reaches for the code's class; purity is
    the share of codes in the commonest class of their cluster; the adjusted Rand index is zero in the mean by chance.

    Notes
    -----
    Larsen, Aone, "Fast and effective text mining using linear-time document clustering", KDD 1999; Hubert, Arabie,
    "Comparing partitions", Journal of Classification 1985.

    Examples
    --------
    >>> agreement([1, 1, 0, 0], [0, 0, 3, 3])
    {'F-measure': 1.0, 'purity': 1.0, 'adjusted Rand': 1.0}
    """
    counts = contingency_matrix(classes, clusters)
    f1 = 2 * counts / (counts.sum(1, keepdims=True) + counts.sum(0))
    return {
        "F-measure": float(np.average(f1.max(1), weights=counts.sum(1))),
        "purity": float(counts.max(0).sum() / counts.sum()),
        "adjusted Rand": float(adjusted_rand_score(classes, clusters)),
    }


def mean_and_error(values: NDArray[Any]) -> tuple[str, str]:
    """Word the mean of numbers and its standard error, which one number does not have.

    Examples
    --------
    >>> mean_and_error(np.array([1.0, 2.0, 3.0])), mean_and_error(np.array([1.0]))
    (('2.0000', '0.5774'), ('1.0000', ''))
    """
    if len(values) == 0:
        return "", ""
    error = f"{values.std(ddof=1) / len(values) ** 0.5:.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}", error


def _line(a: Tensor, b: Tensor, segments: int) -> Tensor:
    t = torch.linspace(0, 1, segments + 1, dtype=a.dtype, device=a.device)[:, None]
    return torch.lerp(a[:, None], b[:, None], t)  # (k, segments + 1, d)


def _finite_or_none(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


class Clock:
    """Seconds by the name of what took them.

    Examples
    --------
    >>> clock = Clock()
    >>> with clock("rest"):
    ...     pass
    >>> list(clock.seconds)
    ['rest']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def environment() -> dict[str, Any]:
    """Return the versions and the machine that a result depends on.

    Examples
    --------
    >>> sorted(environment())
    ['cores', 'platform', 'threads', 'versions']
    """
    packages = ("numpy", "scipy", "scikit-learn", "matplotlib")
    # PyTorch's own word names the build too, for CUDA or not, which its distribution does not always
    versions = {"oddity": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    return {
        "versions": versions | {name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def peak_memory_mib() -> float | None:
    """Return the most memory that this process has held, in MiB; None where the system does not say.

    Examples
    --------
    >>> peak_memory_mib() is None or peak_memory_mib() > 1
    True
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write JSON that any reader understands (no NaN), in the order given, beside ``path`` and renamed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.json")
    ...     write_json(file, {"one": 1})
    ...     json.loads(file.read_text())
    {'one': 1}
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as .npz, beside ``path`` and renamed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.npz")
    ...     write_arrays(file, {"x": np.arange(3)})
    ...     np.load(file)["x"].tolist()
    [0, 1, 2]
    """
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]  # an array could be called allow_pickle


def write_array(path: str | os.PathLike[str], array: NDArray[Any]) -> None:
    """Write one array as .npy, beside ``path`` and renamed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.npy")
    ...     write_array(file, np.arange(3))
    ...     np.load(file).tolist()
    [0, 1, 2]
    """
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, array, allow_pickle=False)
