"""Arguments and options that several commands take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


class Method(StrEnum):
    """Of measuring many distances."""

    refined = "refined"
    exact = "exact"
    graph = "graph"


Data = Annotated[
    str,
    Argument(
        help="mnist5k, digits, mnist or fashion-mnist; or a .npy, .npz or .csv file, or a folder of images.",
    ),
]
Model = Annotated[Path, Argument(help="The folder of a trained model.")]
Classes = Annotated[str | None, Option(metavar="LIST", help="Keep the rows of these classes only, such as 0,1,2.")]
Seed = Annotated[int, Option(min=0, max=2**32 - 1, help="Seed of all that is random: the same, the same result.")]
PLACE = "An index of a code in the model, or latent coordinates such as 0.3,-1.2."
Start = Annotated[str, Option("--from", metavar="PLACE", help=PLACE)]
Goal = Annotated[str, Option("--to", metavar="PLACE", help=PLACE)]


def listed(text: str | None) -> list[int | str] | None:
    """Read a list of classes."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]
