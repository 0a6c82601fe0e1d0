"""The package as a whole: cheap to import, explicit in its names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import oddity


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'numpy', 'sklearn', 'scipy', 'matplotlib', 'lightning_fabric'}"
    code = f"import sys, oddity; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", oddity.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(oddity, name)
    assert name.startswith("__") or value.__doc__
    assert name in dir(oddity)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(oddity.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen | {"__version__"} == set(oddity.__all__)


def test_an_unknown_name_says_so() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'geodesics'.*Pullback"):
        oddity.geodesics  # noqa: B018
