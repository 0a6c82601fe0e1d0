"""The package as a whole: cheap to import, explicit in its names."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import oddity


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'numba', 'numpy', 'sklearn', 'scipy', 'matplotlib', 'lightning_fabric'}"
    code = f"import sys, oddity; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", oddity.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(oddity, name)
    assert name.startswith("__") or value.__doc__
    assert name in dir(oddity)


# What a function returns is shown where it is made.
SHOWN_BY = {
    "Analogy": "analogy",
    "Interpolation": "interpolate",
    "LengthUncertainty": "length_uncertainty",
    "Stability": "stability",
    "Walk": "brownian_motion",
}
# What a subclass of Manifold says or says faster: the class itself is the example, and users call the derived methods.
SAID_BY_A_SUBCLASS = {"push", "secant", "secants", "frame", "chain_model", "force", "linear_curvature"}
METHODS = {
    f"{kind.__name__}.{name}": method
    for kind, without in ((oddity.Manifold, SAID_BY_A_SUBCLASS), (oddity.VAE, set()))
    for name, method in vars(kind).items()
    if inspect.isfunction(method) and not name.startswith("_") and name not in without
}


@pytest.mark.parametrize("name", [n for n in oddity.__all__ if callable(getattr(oddity, n)) and n not in SHOWN_BY])
def test_every_public_class_and_function_has_an_example(name: str) -> None:
    assert ">>> " in getattr(oddity, name).__doc__


def test_what_has_no_example_is_shown_by_another() -> None:
    for name, maker in SHOWN_BY.items():
        assert ">>> " not in getattr(oddity, name).__doc__, f"{name} has an example: it is no exception any more"
        assert f"{maker}(" in getattr(oddity, maker).__doc__.partition(">>> ")[2]


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_users_call_have_an_example(name: str) -> None:
    assert ">>> " in METHODS[name].__doc__


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(oddity.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen | {"__version__"} == set(oddity.__all__)


def test_an_unknown_name_says_so() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'geodesics'.*Pullback"):
        oddity.geodesics  # noqa: B018
