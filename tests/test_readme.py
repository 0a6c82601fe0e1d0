"""The README tells the truth: its Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    runnable = [block for block in blocks if not block.startswith((">>>", "#"))]  # "#": see test_adapters.py
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
    used = set(re.findall(r"^oddity (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert used
    assert used <= known


def test_no_figure_is_left_open() -> None:
    assert not re.findall(r"@[A-Z]+@|TODO|TBD", README.read_text(encoding="utf-8"))
