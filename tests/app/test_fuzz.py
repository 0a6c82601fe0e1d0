"""Damaged files, many of each kind: the command says a sentence about each, or reads it, and never falls."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oddity import Sphere, fit_vae, pairwise_distances
from oddity.app.cli import main
from oddity.app.datasets import open_dataset
from oddity.models.storage import load_model, save_model
from oddity.models.vae import Architecture

MANY = 200
SHAPE = 7, 6
TABLES = (".npy", ".npz", ".csv", ".gz")


def attempt(work: Callable[[], Any]) -> tuple[Any, str]:
    """What the work gives, or the sentence with which it is refused."""
    try:
        return work(), ""
    except (ValueError, OSError) as refusal:
        return None, f"{refusal!s}\n" if type(refusal).__module__ != "builtins" else str(refusal)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One of the ways in which files go wrong, at a random place; heads are met as often as all the rest."""
    reach = len(content) if rng.random() < 0.5 else min(len(content), 200)
    at, some = int(rng.integers(reach)), int(rng.integers(1, 9))
    noise = rng.bytes(some)
    ways: list[Callable[[], bytes]] = [
        lambda: content[:at],
        lambda: content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :],
        lambda: content[:at] + noise + content[at + some :],
        lambda: content[:at] + noise + content[at:],
        lambda: content[:at] + content[at + some :],
        lambda: content[:at] + b"\xff" * some + content[at + some :],
        lambda: content[:at] + b"9" * some + content[at + some :],
    ]
    return ways[int(rng.integers(len(ways)))]()


def table(path: Path) -> None:
    rows = np.random.default_rng(0).random((9, 5))
    np.savetxt(path, np.c_[np.arange(9) % 3, rows], delimiter=",", header="label,a,b,c,d,e", comments="")


def zipped(path: Path) -> None:
    plain = path.with_name("plain")
    table(plain)
    path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))


def picture(mode: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        values = np.random.default_rng(0).random(SHAPE)
        deep = Image.fromarray((65535 * values).astype(np.uint16))
        image = deep if mode == "I;16" else Image.fromarray((255 * values).astype(np.uint8)).convert(mode)
        image.save(path)

    return write


DATA: dict[str, Callable[[Path], None]] = {
    "a.npy": lambda path: np.save(path, np.random.default_rng(0).random((9, 5))),
    "a.npz": lambda path: np.savez(path, X=np.eye(5), y=np.arange(5)),
    "b.npz": lambda path: np.savez_compressed(path, X=np.eye(5), y=np.array(["a", "b", "a", "b", "c"])),
    "a.csv": table,
    "a.csv.gz": zipped,
    **{f"{mode[:1]}{suffix}": picture(mode) for mode in ("L", "RGBA", "P") for suffix in (".png", ".gif", ".webp")},
    **{f"deep{suffix}": picture("I;16") for suffix in (".png", ".tif", ".pgm")},
    **{f"grey{suffix}": picture("L") for suffix in (".jpg", ".bmp", ".tiff", ".ppm")},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DATA)
def test_damaged_data(name: str, tmp_path: Path) -> None:
    rng, file = np.random.default_rng(0), tmp_path / "data" / name
    file.parent.mkdir()
    DATA[name](file)
    source = file if file.suffix in TABLES else file.parent
    content = file.read_bytes()
    assert len(open_dataset(source).X)
    for _ in range(MANY):
        file.write_bytes(damaged(content, rng))
        data, said = attempt(lambda: open_dataset(source))
        if data is None:
            assert "\n" not in said
            assert str(file.parent) in said
        else:
            assert np.isfinite(data.X).all()
            assert data.y is None or len(data.y) == len(data.X)


def signed(folder: Path, name: str) -> None:
    """Give a description the checksums of the files that are there, and none of its own."""
    about = json.loads((folder / name).read_text())
    about.pop("checksum", None)
    about["files"] = {
        group: hashlib.sha256((folder / f"{group}.safetensors").read_bytes()).hexdigest() for group in about["files"]
    }
    (folder / name).write_text(json.dumps(about))


@pytest.mark.slow
@pytest.mark.parametrize("sign", [False, True])
@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "codes.safetensors"])
def test_damaged_models(name: str, sign: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, folder = np.random.default_rng(1), tmp_path / "m"
    vae = Architecture(6, 2, (8, 4), scale="rbf", n_centres=3).build(seed=3)
    info = {"class_names": {"0": "a", "1": "b"}, "image_shape": [2, 3]}
    codes = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    save_model(folder, vae, codes=codes, labels=torch.arange(9) % 2, info=info)
    if sign:
        signed(folder, "model.json")
    content = (folder / name).read_bytes()
    description = (folder / "model.json").read_text()
    for _ in range(MANY):
        (folder / "model.json").write_text(description)
        (folder / name).write_bytes(damaged(content, rng))
        if sign and name != "model.json":
            signed(folder, "model.json")
        status = main(["info", str(folder)])
        said = capsys.readouterr()
        assert (status, said.err) == (0, "") or (status == 2 and said.err.count("\n") == 1), said.err
        if status == 0:
            assert load_model(folder).codes is None or bool(load_model(folder).codes.isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["D.npy.journal", "D.npy.part"])
def test_damaged_beginnings_of_distances(name: str, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    rng, out, M = np.random.default_rng(2), tmp_path / "D.npy", Sphere(2)
    z = 0.5 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    whole = pairwise_distances(M, z, block=1)
    with pytest.raises(KeyboardInterrupt):
        pairwise_distances(M, z, block=1, out=out, progress=stop)
    files = {file: file.read_bytes() for file in (tmp_path / "D.npy.journal", tmp_path / "D.npy.part")}
    for _ in range(MANY):
        for file, content in files.items():
            file.write_bytes(content[:128] if file.name == name == "D.npy.part" else content)
        file = tmp_path / name
        head = files[file][:128] if name == "D.npy.part" else files[file]
        file.write_bytes(damaged(head, rng) + (files[file][128:] if name == "D.npy.part" else b""))
        found, said = attempt(lambda: pairwise_distances(M, z, block=1, out=out))
        assert "\n" not in said
        if found is not None:
            assert (found.values == whole.values).all()
            assert found.solved == whole.solved
            out.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "adam.safetensors"])
def test_damaged_checkpoints(name: str, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    rng, folder = np.random.default_rng(3), tmp_path / "c"
    X = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    settings = {"hidden": (4,), "epochs": 2, "variance_epochs": 1, "n_centres": 2, "checkpoint_every": 1}
    whole = fit_vae(X, **settings).state_dict()
    with pytest.raises(KeyboardInterrupt):
        fit_vae(X, **settings, checkpoint=folder, progress=stop)
    files = {file: file.read_bytes() for file in folder.iterdir()}
    for _ in range(MANY // 2):
        for file, content in files.items():
            file.write_bytes(content)
        (folder / name).write_bytes(damaged(files[folder / name], rng))
        found, said = attempt(lambda: fit_vae(X, **settings, checkpoint=folder, resume=True).state_dict())
        assert "\n" not in said
        assert found is None or all(torch.equal(found[key], whole[key]) for key in whole)
