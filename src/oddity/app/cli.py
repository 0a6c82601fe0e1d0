"""The command ``oddity``: the way in and out.

Help is immediate: see :mod:`oddity.app.commands`. A user's mistake ends in one sentence and exit status 2; a mistake
of ours in a traceback.
"""

import dis
import errno
import os
import sys
from collections.abc import Sequence
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
    """Run the command and return its exit status: 0, 2 for a user's mistake, 130 for Ctrl-C.

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
        status = command.main(arguments, prog_name="oddity", standalone_mode=False)
    except _UsageError as error:
        return _say(error.format_message(), 2) if error.format_message() else 2  # no command: help was shown
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except Interrupted as interrupted:
        return _say(str(interrupted), 130)
    except OSError as error:
        return _say(_sentence(error), 2)
    except (ValueError, RuntimeError) as error:
        if not _on_purpose(error):
            raise
        return _say(str(error), 2)
    return _say("interrupted: nothing was left half-written", 130) if status == 130 else int(status or 0)


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
