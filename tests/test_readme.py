"""What the README shows is true as far as a test can tell: its code runs, its commands are understood."""

import re
import shlex
from pathlib import Path

import pytest

from nas_moreau import cli
from nas_moreau.architecture import operations

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "checkpoints/" not in b]
# a command may go on in the next line after a backslash
COMMANDS = re.findall(r"^    (nas-moreau (?:.*\\\n)*.*)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_runs(number, monkeypatch):
    monkeypatch.setattr(operations, "_BUILDERS", dict(operations._BUILDERS))
    exec(compile(BLOCKS[number], f"README block {number}", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    assert cli._parse(words[1:]).function


def test_there_is_something_to_test():
    assert len(BLOCKS) >= 3 and len(COMMANDS) >= 15


def test_local_links_lead_somewhere():
    root = Path(__file__).parents[1]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links and all((root / link).exists() for link in links)
