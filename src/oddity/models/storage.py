"""Models on disk: a folder with weights as safetensors and a JSON description. Nothing is ever unpickled."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from oddity._version import __version__
from oddity.models.vae import VAE, Architecture

#: The layout's version; a reader refuses any other.
FORMAT = 1

MODEL_FILE = "model.json"

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class SavedModel:
    """What :func:`load_model` returns.

    Attributes
    ----------
    vae : VAE
        In evaluation mode, its parameters frozen, on the CPU.
    codes : Tensor or None
        The training data's codes (n, d).
    labels : Tensor or None
        Their labels (n,), integers.
    info : dict
        What the writer added: data set, image shape.

    Examples
    --------
    >>> saved = SavedModel(Architecture(data_dim=6, latent_dim=2).build(), info={"dataset": "toy"})
    >>> saved.info["dataset"], saved.codes is None
    ('toy', True)
    """

    vae: VAE
    codes: Tensor | None = None
    labels: Tensor | None = None
    info: dict[str, Any] = field(default_factory=dict)


def save_model(
    path: str | os.PathLike[str],
    vae: VAE,
    *,
    codes: Tensor | None = None,
    labels: Tensor | None = None,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model to a folder; an earlier model there stays whole until the new one is complete.

    The folder holds ``model.json`` (format, version, architecture, info), ``weights.safetensors`` and, when
    there are codes, ``codes.safetensors``. It is written beside its place and renamed.

    Parameters
    ----------
    path : path-like
        The folder; replaced if it holds a model, refused if it holds anything else.
    vae : VAE
        Made of this library's parts (see :meth:`Architecture.of`).
    codes, labels : Tensor, optional
        Codes (n, d) and integer labels (n,).
    info : mapping, optional
        Anything that JSON can say; tuples come back as lists. The command reads ``training``, a mapping,
        ``class_names``, from labels to names, and ``image_shape``, two or three sizes.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        When the folder holds other files, a shape does not fit, or ``info`` is not JSON.
    OSError
        When the disk fails; the earlier model is then still in place.

    Examples
    --------
    >>> import tempfile
    >>> vae = Architecture(data_dim=6, latent_dim=2).build()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_model(folder + "/toy", vae, info={"dataset": "toy"})
    ...     load_model(path).info
    {'dataset': 'toy'}
    """
    plan, info = Architecture.of(vae), dict(info or {})
    if fault := _fault(info, vae.data_dim):
        raise ValueError(f"{fault}: give what the command reads in its own form, or under another name")
    tensors = {"weights": dict(vae.state_dict())}
    extra = _codes(vae, codes, labels)
    if extra:
        tensors["codes"] = extra
    about = {"oddity": __version__, "architecture": asdict(plan), "info": info}
    write_folder(Path(path), MODEL_FILE, about, tensors)
    return Path(path)


def load_model(path: str | os.PathLike[str]) -> SavedModel:
    """Read a model written by :func:`save_model`, bit for bit.

    Parameters
    ----------
    path : path-like
        The folder.

    Returns
    -------
    SavedModel

    Raises
    ------
    FileNotFoundError
        When the folder or one of its files is missing.
    ValueError
        When a file is damaged, of another format version, or the weights don't fit the description.

    Examples
    --------
    >>> import tempfile
    >>> vae = Architecture(data_dim=6, latent_dim=2).build()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saved = load_model(save_model(folder + "/toy", vae))
    >>> bool((saved.vae.decoder.mean_net[0].weight == vae.decoder.mean_net[0].weight).all())
    True
    """
    folder = Path(path)
    about, tensors = read_folder(folder, MODEL_FILE, remedy="save the model again")
    vae = rebuilt(folder, about, tensors.get("weights", {}), Architecture.build)
    codes, info = tensors.get("codes", {}), about.get("info", {})
    if fault := _fault(info, vae.data_dim):
        raise ValueError(f"{str(folder / MODEL_FILE)!r} is damaged ({fault}): save the model again")
    return SavedModel(vae, codes.get("codes"), codes.get("labels"), info)


def write_folder(
    folder: Path, name: str, about: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Write tensors and their description ``name`` to a folder, whole or not at all.

    Each group of tensors becomes ``<group>.safetensors``, its checksum in the description. The new folder is
    completed under a temporary name, the old one set aside, the new one renamed into its place.
    """
    check_replaceable(folder, name)
    folder = folder.resolve()
    aside, fresh = _aside(folder), folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        _fill(fresh, name, about, tensors)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        fresh.rename(folder)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        if isinstance(error, OSError) and error.filename is None:  # a write that fails does not say where
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise
    shutil.rmtree(aside, ignore_errors=True)


def locate(folder: Path) -> Path | None:
    """Return where the folder is: in its place, or set aside by a kill between the two renames, or nowhere."""
    return next((place for place in (folder, _aside(folder)) if place.exists()), None)


def read_folder(folder: Path, name: str, remedy: str) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Read what :func:`write_folder` wrote; raise FileNotFoundError or ValueError, each with the remedy."""
    found = locate(folder)
    if found is None:
        raise FileNotFoundError(f"there is no folder {str(folder)!r}: check the path, or {remedy}")
    if not found.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file: name the folder that holds {name}")
    folder = found
    about = _read_json(folder / name, remedy)
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{str(folder / name)!r} has format {about.get('format')!r}, this version reads {FORMAT}: "
            f"{remedy} with this version"
        )
    files = about.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{str(folder / name)!r} lists no files: {remedy}")
    for group in files:
        if not group.isidentifier():  # no path that leads elsewhere
            raise ValueError(f"{str(folder / name)!r} is damaged (it lists a file {group!r}): {remedy}")
    read = {group: _read_tensors(folder / f"{group}.safetensors", sha, remedy) for group, sha in files.items()}
    return about, read


def rebuilt(
    folder: Path, about: Mapping[str, Any], weights: Mapping[str, Tensor], build: Callable[[Architecture], _Module]
) -> _Module:
    """Build what a description holds the architecture of, give it its weights, and freeze it in evaluation mode."""
    try:
        fields = dict(about["architecture"])
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        module = build(Architecture(**fields))
        module.load_state_dict(weights, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"the weights in {str(folder)!r} do not fit the architecture beside them ({reason}): save the model again"
        ) from error
    return module.eval().requires_grad_(False)


def check_replaceable(folder: Path, name: str) -> None:
    """Raise ValueError unless the folder is absent, empty, or one that :func:`write_folder` wrote."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file: name a folder")
    present = sorted(item.name for item in folder.iterdir())
    foreign = [item for item in present if item != name and not item.endswith(".safetensors")]
    if foreign or (present and name not in present):
        raise ValueError(
            f"{str(folder)!r} holds {', '.join(foreign or present)}, which would be lost: name another folder"
        )


def _codes(vae: VAE, codes: Tensor | None, labels: Tensor | None) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if codes is not None:
        if codes.ndim != 2 or codes.shape[1] != vae.latent_dim:
            raise ValueError(f"codes of shape {tuple(codes.shape)}: pass (n, {vae.latent_dim})")
        found["codes"] = codes.detach()
    if labels is not None:
        if codes is None or labels.shape != codes.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"labels of shape {tuple(labels.shape)}, {labels.dtype}: pass integers (n,), one for each code"
            )
        found["labels"] = labels
    return found


def _fault(info: Any, data_dim: int) -> str:
    """Say what is wrong with the parts of ``info`` that the command reads; nothing where all is well."""
    if not isinstance(info, dict):
        return "its info is no object"
    for name in ("training", "class_names"):
        if not isinstance(info.get(name, {}), Mapping):
            return f"{name} in its info is {info[name]!r}, no mapping"
    shape = info.get("image_shape")
    if shape and not (_are_sizes(shape) and math.prod(shape) == data_dim):
        return f"image_shape in its info is {shape!r}, not that of {data_dim} pixels"
    wrong = [label for label in info.get("class_names", {}) if not str(label).lstrip("-").isdecimal()]
    return f"class_names in its info name {wrong[0]!r}, no label" if wrong else ""


def _are_sizes(shape: Any) -> bool:
    return isinstance(shape, list | tuple) and len(shape) in (2, 3) and all(type(n) is int and n > 0 for n in shape)


def _fill(folder: Path, name: str, about: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    files = {}
    for group, content in tensors.items():
        data = save({key: value.detach().cpu().contiguous() for key, value in content.items()})
        _write_bytes(folder / f"{group}.safetensors", data)
        files[group] = hashlib.sha256(data).hexdigest()
    try:
        text = json.dumps({"format": FORMAT, **about, "files": files}, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"info must be made of JSON's own types: {error}") from error
    _write_bytes(folder / name, (text + "\n").encode())


def _write_bytes(file: Path, data: bytes) -> None:
    """Write through Python, whose errors say what is wrong with the disk; safetensors' own writer hides it."""
    file.write_bytes(data)


def _read_json(file: Path, remedy: str) -> dict[str, Any]:
    try:
        about = json.loads(_read_bytes(file, remedy))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}): {remedy}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{str(file)!r} is damaged (not a JSON object): {remedy}")
    return about


def _read_tensors(file: Path, checksum: str, remedy: str) -> dict[str, Tensor]:
    content = _read_bytes(file, remedy)
    if hashlib.sha256(content).hexdigest() != checksum:
        raise ValueError(f"{str(file)!r} is damaged (its checksum differs): {remedy}")
    try:
        return {key: value.clone() for key, value in load(content).items()}
    except SafetensorError as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}): {remedy}") from error


def _read_bytes(file: Path, remedy: str) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{str(file)!r} is missing: {remedy}") from error


def _aside(folder: Path) -> Path:
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.old")
