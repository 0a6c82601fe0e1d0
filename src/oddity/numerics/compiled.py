"""What Numba makes of a kernel: code that stands alone, kept in files that are believed only as they were written.

Numba compiles each part of a kernel by itself and links a copy into the kernel, under the same name. Of equal names a
process takes the one that it meets first: the part by itself, in the process that compiled it; else the copy in the
first kernel that was read from a file. Copies compute the same, but are optimised in different surroundings, and so
round differently. Here copies are internal to their kernel, whose numbers then do not depend on what ran before.

This module imports Numba; import it where the first kernel runs.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.serialize import dumps

from oddity.numerics.native import coded

__all__ = ["compiled", "linked"]

_log = logging.getLogger(__name__)


def compiled(f: Callable[..., Any], **settings: Any) -> Callable[..., None]:
    """Let Numba compile a function at its first call for each kind of arguments, or take the code from a file."""
    dispatcher: Any = numba.njit(pipeline_class=_Compiler, **settings)(f)
    try:
        dispatcher._cache = _Cache(f)
    except RuntimeError as e:
        _log.info("the code of %s is not kept: %s", f.__qualname__, e)
    found: Callable[..., None] = dispatcher
    return found


def linked(f: Callable[..., Any], **settings: Any) -> Any:
    """Let Numba compile a part, to be called by kernels."""
    return numba.njit(pipeline_class=_PartCompiler, **settings)(f)


class _Library(JITCodeLibrary):
    """Code of a kernel, in which copies of its parts have no name that other code knows."""

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage.name.startswith("linkonce"):
                function.linkage = "internal"
        super()._optimize_final_module()


class _PartLibrary(JITCodeLibrary):
    """Code of a part, optimised in the kernels that it is linked into and not by itself: a third of the time less."""

    def _optimize_final_module(self) -> None:
        pass


class _Compiler(Compiler):
    """Numba's compiler, with a library of ours."""

    library: type[JITCodeLibrary] = _Library

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        self.state.library = self.library(self.state.targetctx.codegen(), func.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(func)


class _PartCompiler(_Compiler):
    library = _PartLibrary


class _Cache(FunctionCache):
    """Numba's cache, but code that cannot be read is compiled again, and code that cannot be written is not kept."""

    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__(f)
        ours = [coded(library._optimize_final_module) for library in (_Library, _PartLibrary)]
        stamp = repr((numba.__version__, llvmlite.__version__, ours, self._impl.locator.get_source_stamp()))
        self._cache_file = _Files(Path(self._cache_path) / self._impl.filename_base, stamp)  # type: ignore[assignment]

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as e:  # whatever a file holds
            _log.info("%s is compiled again, since its code could not be read: %s", self._py_func.__qualname__, e)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as e:
            _log.info("the code of %s could not be kept: %s", self._py_func.__qualname__, e)


class _Files:
    """One file for each key. It begins with a digest, so that nothing damaged is unpickled or run.

    Numba's own files, an index and numbered data, are believed whatever they hold; and two processes that compile a
    function at once, for different arguments, can leave data of the one under a key of the other.
    """

    def __init__(self, base: Path, stamp: str) -> None:
        self.base, self.stamp = base, stamp

    def load(self, key: Any) -> Any:
        """What was saved, or None if nothing was."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, data = content[:_DIGEST], content[_DIGEST:]
        if digest != self._digest(key, data):
            raise ValueError(f"{path} is damaged, or of another version")
        return pickle.loads(data)

    def save(self, key: Any, data: Any) -> None:
        """Write a file as a whole, or not at all."""
        path, pickled = self._path(key), dumps(data)
        beside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}")
        try:
            beside.write_bytes(self._digest(key, pickled) + pickled)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def _path(self, key: Any) -> Path:
        return self.base.with_name(f"{self.base.name}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.code")

    def _digest(self, key: Any, data: bytes) -> bytes:
        return hashlib.sha256(repr((self.stamp, key)).encode() + data).digest()


_DIGEST = hashlib.sha256().digest_size
