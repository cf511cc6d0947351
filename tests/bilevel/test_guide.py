"""The code of docs/bilevel.md runs, and what it asserts holds."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "bilevel.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_guide_has_code():
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_the_code_of_the_guide_runs(block, capsys):
    exec(compile(BLOCKS[block], f"docs/bilevel.md, block {block + 1}", "exec"), {"__name__": "guide"})
