"""What the README and its pages show is true as far as a test can tell: its code runs, its commands are understood."""

import re
import shlex
from pathlib import Path

import pytest

from nas_moreau.cli import entry as cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCKS = [
    b for b in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if '"runs/first' not in b
]  # test_recipes runs that
# a command may go on in the next line after a backslash
COMMANDS = re.findall(r"^    (nas-moreau (?:.*\\\n)*.*)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_runs(number, registrations_forgotten, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with registrations_forgotten():
        exec(compile(BLOCKS[number], f"README block {number}", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    assert cli.parse_arguments(words[1:]).function


def test_there_is_something_to_test():
    assert len(BLOCKS) >= 2 and len(COMMANDS) >= 15


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_local_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
    assert all((page.parent / link).exists() for link in links)


def test_the_readme_is_short_and_the_index_names_every_page():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert "(docs/index.md)" in PAGES[0].read_text(encoding="utf-8")
    assert all(f"({page.name})" in index for page in PAGES[1:] if page.name != "index.md")


def test_links_within_the_readme_lead_to_headings():
    text = PAGES[0].read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_the_way_of_a_search_names_modules_that_exist():
    text = (ROOT / "docs" / "how_a_search_works.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `([\w/.]+)` \| (.*) \|$", text, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1)) and 5 < len(rows) <= 15
    for _, module, sentence in rows:
        assert (ROOT / "nas_moreau" / module).exists(), module
        assert len(sentence) > 20
