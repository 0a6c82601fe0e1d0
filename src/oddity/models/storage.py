"""Models on disk: a folder with weights as safetensors and a JSON description. Nothing is ever unpickled."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Never, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from oddity._files import check_readable, held
from oddity._version import __version__
from oddity.models.rbf import RBFPrecision
from oddity.models.vae import VAE, Architecture
from oddity.numerics.ambient import door

#: The layout's version; a reader refuses any other.
FORMAT = 1

MODEL_FILE = "model.json"

_SEAL = "checksum"  # of all else in a description

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


@door
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
        When the folder holds other files, a shape does not fit, a number is not finite or has a sign that it cannot
        have, or ``info`` is not JSON.
    OSError
        When the disk fails, or another process is writing there; the earlier model is then still in place.

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
    if fault := fault_of(vae):
        raise ValueError(f"{fault}: train the model again")
    if fault := _fault(info, vae.data_dim):
        raise ValueError(f"{fault}: give what the command reads in its own form, or under another name")
    tensors = {"weights": dict(vae.state_dict())}
    extra = _codes(vae, codes, labels)
    if extra:
        tensors["codes"] = extra
    about = {"oddity": __version__, "architecture": asdict(plan), "info": info}
    write_folder(Path(path), MODEL_FILE, about, tensors)
    return Path(path)


@door
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
        When a file is damaged, endless or of another format version, the weights don't fit the description, or a number
        is one that no training gives: not finite, a negative weight of a bump, a bandwidth or ``zeta`` not above zero.

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
    try:
        codes = _codes(vae, codes.get("codes"), codes.get("labels"))
    except ValueError as error:
        raise ValueError(f"{str(folder)!r} is damaged: {error}") from error
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
    made = [parent for parent in folder.parents if not parent.exists()]
    busy = f"{str(folder)!r} is being written by another process: wait for it, or name another folder"
    try:
        with held(fresh, lambda: fresh.mkdir(parents=True, exist_ok=True), busy):
            _clear(fresh)  # what a killed process left
            _fill(fresh, name, about, tensors)
            if folder.exists():
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
            fresh.rename(folder)
    except BlockingIOError:
        raise
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and error.filename is None:  # a write that fails does not say where
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _clear(folder: Path) -> None:
    for item in folder.iterdir():
        item.unlink()


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
    if about.pop(_SEAL, None) not in (None, _seal(about)):  # None: written before there was one, or edited by hand
        raise ValueError(
            f"{str(folder / name)!r} is not as it was written: {remedy}, or if you meant it, remove its {_SEAL!r}"
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
    remedy = "save the model again"
    try:
        fields = dict(about["architecture"])
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        plan = Architecture(**fields)
        _check_sizes(plan, weights, build)
        module = build(plan)
        module.load_state_dict(weights, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise ValueError(
            f"the weights in {str(folder)!r} do not fit the architecture beside them ({reason}): {remedy}"
        ) from error
    if fault := fault_of(module):
        raise ValueError(f"the weights in {str(folder)!r} are damaged ({fault}): {remedy}")
    return module.eval().requires_grad_(False)


def _check_sizes(plan: Architecture, weights: Mapping[str, Tensor], build: Callable[[Architecture], nn.Module]) -> None:
    """Hold an architecture against the shapes of its weights before any memory is taken for it."""
    layers = sum(len(sizes) for sizes in (plan.hidden, plan.scale_hidden, plan.channels, plan.scale_channels))
    if layers > len(weights):
        raise ValueError(f"{layers} layers for {len(weights)} weights")
    wanted: dict[str, tuple[int, ...]] = {}
    if plan.scale == "rbf":  # its constructor looks at numbers, and has none here
        scale = {"centres": (plan.n_centres, plan.latent_dim), "zeta": (plan.data_dim,)}
        wanted = {f"decoder.scale.{name}": shape for name, shape in scale.items()}
        plan = replace(plan, scale="constant")
    with torch.device("meta"):
        state = build(plan).state_dict()
    wanted |= {name: tuple(value.shape) for name, value in state.items() if not wanted or ".scale." not in name}
    for name, shape in wanted.items():
        if name not in weights or tuple(weights[name].shape) != shape:
            found = f"it has shape {tuple(weights[name].shape)}" if name in weights else "it is missing"
            raise ValueError(f"{name} should have shape {shape}, and {found}")


def fault_of(module: nn.Module) -> str:
    """Say which number of a trained model no training gives; nothing where all is well."""
    state = module.state_dict()
    types = {value.dtype for value in state.values()}
    if len(types) > 1 or not all(dtype.is_floating_point for dtype in types):
        return f"its numbers are of the types {', '.join(sorted(str(dtype)[6:] for dtype in types))}"
    for name, value in state.items():
        if not bool(value.isfinite().all()) and not name.endswith("largest"):  # a bound, at first infinite
            return f"{name} holds {value[~value.isfinite()][0].item()}"
    try:
        for part in module.modules():
            if isinstance(part, RBFPrecision):
                part.check()
    except ValueError as error:
        return str(error)
    return ""


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
        if not codes.is_floating_point():
            raise ValueError(f"codes of type {codes.dtype}: pass real numbers")
        if not bool(codes.isfinite().all()):
            row = int((~codes.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"code {row} is {codes[row].tolist()}, not finite: train the model again")
        found["codes"] = codes.detach()
    if labels is not None:
        if codes is None or labels.shape != codes.shape[:1] or labels.is_floating_point() or labels.is_complex():
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
    names = info.get("class_names", {})
    if wrong := [label for label in names if not _is_label(label)]:
        return f"class_names in its info name {wrong[0]!r}, no label"
    if wrong := [name for name in names.values() if not isinstance(name, str)]:
        return f"class_names in its info hold {wrong[0]!r}, no name"
    return ""


def _is_label(text: Any) -> bool:
    try:
        return -(1 << 63) <= int(text) < 1 << 63
    except (TypeError, ValueError):
        return False


def _are_sizes(shape: Any) -> bool:
    return isinstance(shape, list | tuple) and len(shape) in (2, 3) and all(type(n) is int and n > 0 for n in shape)


def _fill(folder: Path, name: str, about: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    files = {}
    for group, content in tensors.items():
        data = save({key: value.detach().cpu().contiguous() for key, value in content.items()})
        _write_bytes(folder / f"{group}.safetensors", data)
        files[group] = hashlib.sha256(data).hexdigest()
    about = {"format": FORMAT, **about, "files": files}
    try:
        text = json.dumps({**about, _SEAL: _seal(about)}, indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"info must be made of JSON's own types: {error}") from error
    _write_bytes(folder / name, (text + "\n").encode())


def _seal(about: Mapping[str, Any]) -> str:
    """Checksum of a description, whatever the order and the blanks in its file."""
    again = json.loads(json.dumps(about, allow_nan=False))  # keys and tuples as they will be read
    return hashlib.sha256(json.dumps(again, sort_keys=True).encode()).hexdigest()


def _write_bytes(file: Path, data: bytes) -> None:
    """Write through Python, whose errors say what is wrong with the disk; safetensors' own writer hides it."""
    file.write_bytes(data)


def _read_json(file: Path, remedy: str) -> dict[str, Any]:
    content = _read_bytes(file, remedy)
    try:
        about = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}): {remedy}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{str(file)!r} is damaged (not a JSON object): {remedy}")
    return about


def _no_number(word: str) -> Never:
    raise ValueError(f"{word} is no JSON")


def _read_tensors(file: Path, checksum: str, remedy: str) -> dict[str, Tensor]:
    content = _read_bytes(file, remedy)
    if hashlib.sha256(content).hexdigest() != checksum:
        raise ValueError(f"{str(file)!r} is damaged (its checksum differs): {remedy}")
    try:
        return {key: value.clone() for key, value in load(content).items()}
    except Exception as error:  # whatever a parser says of what its own writer never wrote
        raise ValueError(f"{str(file)!r} is damaged ({error}): {remedy}") from error


def _read_bytes(file: Path, remedy: str) -> bytes:
    try:
        check_readable(file)
        return file.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{str(file)!r} is missing: {remedy}") from error
    except (ValueError, IsADirectoryError) as error:
        raise type(error)(f"{error}; {remedy}") from error


def _aside(folder: Path) -> Path:
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.old")
