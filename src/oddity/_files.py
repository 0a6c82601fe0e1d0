"""Files on a disk: refused before they are read, reserved before they are filled, held by one process at a time."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl as _fcntl
except ImportError:  # not on Windows, where nothing is held
    _fcntl = None  # type: ignore[assignment]

_KINDS: dict[str, Callable[[int], bool]] = {
    "a pipe": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": stat.S_ISCHR,
    "a disk": stat.S_ISBLK,
}
_ZEROS = bytes(1 << 20)


def check_readable(path: Path) -> int:
    """Return the size of a file that can be read whole; links are followed.

    Raises
    ------
    FileNotFoundError, PermissionError
        As the system says it.
    IsADirectoryError
        When it is a folder.
    ValueError
        When it is a pipe or a device, which may never end, or larger than the memory.

    Examples
    --------
    >>> check_readable(Path("/dev/zero"))
    Traceback (most recent call last):
    ValueError: /dev/zero is a device: name a file, which ends
    """
    about = path.stat()
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(f"{path} is a folder: name a file")
    for kind, is_kind in _KINDS.items():
        if is_kind(about.st_mode):
            raise ValueError(f"{path} is {kind}: name a file, which ends")
    check_fits(path, about.st_size)
    return about.st_size


def check_fits(path: Path, size: int) -> None:
    """Raise ValueError when so many bytes of a file are more than this machine has memory for."""
    if size > (memory := _memory()):
        raise ValueError(
            f"{path} holds {size / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f} GiB of memory: "
            "take a part of it"
        )


def _memory() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return float("inf")


def reserve(path: Path, size: int) -> None:
    """Take the room of a whole file from the disk now, what stands in it kept.

    A file that is mapped into memory and has a hole is filled on writing; where the disk has no room left by then, the
    system has no way to say so but a signal, which kills the process.

    Raises
    ------
    OSError
        When there is no room, naming the file.
    """
    with path.open("r+b", buffering=0) as file:
        try:
            if size and not _allocated(file.fileno(), size):
                _fill_up(file, size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def _allocated(file: int, size: int) -> bool:
    """Reserve room, or say that this system or this disk cannot."""
    try:
        os.posix_fallocate(file, 0, size)
    except AttributeError:  # not on every system
        return False
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        return False
    return True


def _fill_up(file: Any, size: int) -> None:
    """Write zeros from the end of a file on, until it has its size."""
    left = size - file.seek(0, os.SEEK_END)
    while left > 0:
        left -= file.write(_ZEROS[:left])


@contextmanager
def held(path: Path, make: Callable[[], object], busy: str) -> Iterator[None]:
    """Hold a file or folder against other processes and threads while the block runs; ``make`` makes it if need be.

    The system lets go of it when the process dies.

    Raises
    ------
    BlockingIOError
        With the sentence ``busy``, when another holds it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "journal")
    ...     with held(file, file.touch, ""), held(file, file.touch, "taken: wait"):
    ...         pass
    Traceback (most recent call last):
    BlockingIOError: taken: wait
    """
    handle = None
    while handle is None:
        make()
        if _fcntl is None:
            break
        handle = _grasped(path, busy)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _grasped(path: Path, busy: str) -> int | None:
    """Open and lock; None where the path has come to lead elsewhere since: the earlier holder was done with it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for who writes to it
    except FileNotFoundError:
        return None
    try:
        _lock(handle)
        if os.path.samestat(os.fstat(handle), path.stat()):
            return handle
    except BlockingIOError:
        os.close(handle)
        raise BlockingIOError(busy) from None
    except FileNotFoundError:
        pass
    os.close(handle)
    return None


def _lock(handle: int) -> None:
    try:
        _fcntl.flock(handle, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS):  # no locks on this disk
            raise
