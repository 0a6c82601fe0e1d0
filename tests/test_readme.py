"""The README tells the truth: its Python runs as it stands."""

import re

import pytest

from .pages import blocks, text


@pytest.mark.slow
def test_the_python_of_the_readme_runs() -> None:
    runnable = [block for block in blocks("README.md") if not block.startswith((">>>", "#"))]  # "#": test_adapters.py
    assert len(runnable) >= 2
    names: dict[str, object] = {}
    for block in runnable:
        exec(block, names)
    assert bool(names["g"].converged)  # type: ignore[attr-defined]
    names["g"].require()  # type: ignore[attr-defined]


def test_every_command_of_the_readme_exists() -> None:
    from typer.main import get_command

    from oddity.app.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"^oddity (\w+)", text("README.md"), re.MULTILINE))
    assert used
    assert used <= known


def test_no_figure_is_left_open() -> None:
    assert not re.findall(r"@[A-Z]+@|TODO|TBD", text("README.md"))
