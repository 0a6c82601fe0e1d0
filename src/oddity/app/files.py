"""Outputs are written beside their place and renamed into it: a reader never meets half a file."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``path`` that takes its place if the block ends well, and is removed if not.

    Parameters
    ----------
    path
        Where the finished file shall stand.

    Raises
    ------
    OSError
        If the disk fails, naming ``path``: what stood there before is then untouched.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = Path(folder) / "note.txt"
    ...     with replacing(target) as part:
    ...         _ = part.write_text("whole")
    ...     target.read_text(), len(list(target.parent.iterdir()))
    ('whole', 1)
    """
    path = _end_of(Path(path))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        if error.filename is not None:
            raise
        # A write that fails does not say where; NumPy's does not even say why.
        reason = error.strerror or f"cannot write all of it, is the disk full? ({error})"
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _end_of(path: Path) -> Path:
    """Follow a link: it stays, and what it leads to is replaced."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Make a folder for the block to fill; if the block fails before it wrote anything, the folder goes again.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as around:
    ...     try:
    ...         with filling(Path(around) / "demo"):
    ...             raise KeyboardInterrupt
    ...     except KeyboardInterrupt:
    ...         list(Path(around).iterdir())
    []
    """
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def check_writable(path: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """Return ``path`` if a file may be written there: minutes of work should not end in a missing folder.

    Parameters
    ----------
    path
        The file to be.
    suffixes
        The endings that its name may have.

    Raises
    ------
    ValueError
        If its name ends otherwise, or a pipe or a device is called so.
    FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError
        With the folder or the file that stands in the way.

    Examples
    --------
    >>> check_writable("map.png", (".png", ".pdf")).name
    'map.png'
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"can't write {path}: let its name end in {' or '.join(suffixes)}")
    check_folder(_end_of(path))
    if path.is_dir():
        raise IsADirectoryError(f"can't write {path}: it is a folder; name a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"can't write {path}: it is a pipe or a device; name a file")
    return path


def check_folder(path: Path) -> None:
    """Raise FileNotFoundError, NotADirectoryError or PermissionError unless something may be made at ``path``."""
    folder = path.parent
    if not folder.exists():
        raise FileNotFoundError(f"can't write {path}: there is no folder {folder}; make it first")
    if not folder.is_dir():
        raise NotADirectoryError(f"can't write {path}: {folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"can't write {path}: the folder {folder} is not writable")
