"""What the commands say: results to standard output, everything else, progress included, to standard error."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

OUTPUT = "standard output"  # as errors call it

_STAGES = {
    "mean": "1/3 encoder and mean",
    "centres": "2/3 centres of the codes",
    "precision": "3/3 precision network",
    "sigma": "baseline: σ-network",
}


class Interrupted(Exception):  # noqa: N818  not an error
    """Ctrl-C, with a sentence on what is left."""


def first_process() -> bool:
    """Whether this process speaks and writes: with several devices the engine starts the command again for each."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def messages() -> "Console":
    """Return the console for what is said beside the results."""
    from rich.console import Console

    return Console(stderr=True, quiet=not first_process(), highlight=False, markup=False)


def note(text: str) -> None:
    """Say a sentence beside the results."""
    messages().print(text, soft_wrap=True)


def show(result: Any) -> None:
    """Print a result, whole even where standard output is not a terminal."""
    from rich.console import Console

    console = Console()
    try:
        Console(width=console.width if console.is_terminal else 160, markup=False).print(result)
    except OSError as error:
        raise OSError(error.errno, error.strerror, OUTPUT) from error


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Say what the library warns of as sentences, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        for category in (RuntimeWarning, UserWarning):
            warnings.simplefilter("always", category)
        yield
    for sentence in dict.fromkeys(str(warning.message) for warning in caught):
        note(f"warning: {sentence}")


@contextmanager
def training_bars() -> Iterator[Any]:
    """Yield the callback of a training, which shows a bar for each of its stages."""
    with bars() as bar:

        def progress(stage: str, epoch: int, epochs: int, value: float) -> None:
            measure = "mean distance" if stage == "centres" else "bound"
            bar(_STAGES[stage], epoch, epochs, f"{measure} {value:.4g}")

        yield progress


@contextmanager
def bars() -> Iterator[Any]:
    """Yield a callback, (stage, done, total), which shows a bar for each stage."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    shown = Progress(*columns, TextColumn("{task.fields[note]}"), console=messages())
    tasks: dict[str, Any] = {}

    def bar(stage: str, done: int, total: int, note: str = "") -> None:
        if not tasks:
            shown.start()  # not before: work that is refused at its door should not leave a blank line
        if stage not in tasks:
            tasks[stage] = shown.add_task(stage, total=total, note="")
        shown.update(tasks[stage], completed=done, note=note)

    try:
        yield bar
    finally:
        if tasks:
            shown.stop()
