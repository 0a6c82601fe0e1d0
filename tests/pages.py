"""The pages of the documentation as programs: their Python runs, and what they say it prints is what it prints."""

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ANSWERS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    """Python of a page, block by block."""
    return re.findall(r"```python\n(.*?)```", text(page), re.DOTALL)


def run(page: str) -> dict[str, object]:
    """Run all blocks of a page in their order, in one name space, and return it.

    A block with prompts is held to its answers; others only have to run.
    """
    names: dict[str, object] = {}
    parser, report = doctest.DocTestParser(), []
    runner = doctest.DocTestRunner(optionflags=_ANSWERS)
    for number, block in enumerate(blocks(page), 1):
        if block.startswith(">>>"):
            test = parser.get_doctest(block, names, f"{page}, block {number}", page, 0)
            runner.run(test, out=report.append, clear_globs=False)
            names = test.globs
        else:
            exec(compile(block, f"{page}, block {number}", "exec"), names)
    assert not report, "".join(report)
    return names
