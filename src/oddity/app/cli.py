"""The command ``oddity``: the way in and out.

Help is immediate: see :mod:`oddity.app.commands`. A user's mistake ends in one sentence and exit status 2; a mistake
of ours in a traceback.
"""

import dis
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer import Option

from oddity.app.commands import demo, geodesics, paper, statistics, training
from oddity.app.terminal import OUTPUT, Interrupted, first_process

app = typer.Typer(
    name="oddity",
    help="The Riemannian geometry of the latent space of a generative model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for theme in (demo, training, geodesics, statistics, paper):
    app.add_typer(theme.app)

_UsageError: Any = typer.BadParameter.__base__  # Typer's own copy, or Click's: it moved between versions


def _show_version(asked: bool) -> None:
    if asked:
        from oddity._version import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Carry the options that stand before a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for a user's mistake, 130 for Ctrl-C, 143 for a kill.

    Parameters
    ----------
    arguments
        In place of ``sys.argv[1:]``.

    Examples
    --------
    >>> main(["info", "no-such-model"])  # says on standard error that there is no such folder
    2
    """
    # Idle threads that spin make a shared machine ten times slower than one thread would be.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    command = typer.main.get_command(app)
    try:
        with _stopping() as stopped:
            status = command.main(arguments, prog_name="oddity", standalone_mode=False)
    except _UsageError as error:
        return _say(error.format_message(), 2) if error.format_message() else 2  # no command: help was shown
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except Interrupted as interrupted:
        return _say(str(interrupted), stopped[-1])
    except OSError as error:
        return _say(_sentence(error), 2)
    except (ValueError, RuntimeError, MemoryError) as error:
        if _on_purpose(error):
            return _say(str(error), 2)
        if not _is_out_of_memory(error):
            raise
        said = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return _say(f"not enough memory{said}: take fewer data, or a smaller model", 2)
    return _say("interrupted: nothing was left half-written", stopped[-1]) if status == 130 else int(status or 0)


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """Let a kill, or a terminal that closes, end the block as Ctrl-C does, so that nothing is left half-written.

    Yields a list of exit statuses, of which the last is that of the interruption.
    """
    stopped, before = [130], {}

    def stop(number: int, _: Any) -> None:
        stopped.append(128 + number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():  # no other may
        asked = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
        before = {number: signal.getsignal(number) for number in asked if number is not None}
    kept = [number for number, handler in before.items() if handler is signal.SIG_DFL]  # nohup ignores one of them
    for number in kept:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number in kept:
            signal.signal(number, signal.SIG_DFL)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: NumPy and Python have a class for that, PyTorch on a CPU has words."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error)


def _say(sentence: str, status: int) -> int:
    if first_process():
        print(f"oddity: {sentence}", file=sys.stderr)
    return status


def _sentence(error: OSError) -> str:
    """Say what the system said, without its number, and what helps against a full disk."""
    if error.strerror is None:
        return str(error)
    where = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename != OUTPUT
    return f"{where}; make room and run it again, what stood there before is intact" if full else where


def _on_purpose(error: BaseException) -> bool:
    """Whether a ``raise`` of ours or of the engine's made the error: what C code raises under our lines is an accident.

    Python notes which instruction of the innermost frame an error came from.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or isinstance(error, NotImplementedError):
        return False
    module, instruction = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_frame.f_code.co_code[trace.tb_lasti]
    raised = dis.opname[instruction] == "RAISE_VARARGS"
    return raised and module.startswith(("oddity.", "lightning_fabric.connector"))
