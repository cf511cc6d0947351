"""The vocabulary of docs/terms.md: docstrings, messages, help and pages keep to the field's terms and plain English."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nas_moreau

ROOT = Path(nas_moreau.__file__).parents[1]
SOURCES = sorted([*ROOT.glob("nas_moreau/**/*.py"), *ROOT.glob("scripts/**/*.py")])
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]

# What the field has a term for, or what a reader stumbles over: docs/terms.md has what stands there instead.
DROPPED = """
anew; learnt; likewise; besides; by and by; for ever; at most so (?:many|much); so (?:many|much) (?:of|as|steps|images)
of its own; of their own; of one's own; in place of; what it takes; names no; heed(?:s|ed)?; mend(?:s|ed)?; tells?; told
said; by heart; amiss; hand(?:s|ed) on; to be had; (?<!there )(?:is|are) no (?!longer|more|less|fewer)[a-z]+
"""
WORDS = "|".join(part.strip() for line in DROPPED.split("\n") for part in line.split(";") if part.strip())
FOUND = re.compile(rf"\b(?:{WORDS})\b", re.IGNORECASE)
RIDDLE = re.compile(r"^(?:Whose|Of the|Of a|Of an|Given to)\b[^.:]*\.$")
# (file, word): a quotation, a term of the field, or a name
EXCEPTIONS: dict[str, set[str]] = {}


def texts(path: Path) -> list[tuple[int, str]]:
    """The strings of a module with their lines: docstrings, messages, help."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            found.append((node.lineno, node.value))
    return found


def hits(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    return [m.group(0).lower() for m in FOUND.finditer(text)] + [line for line in lines if RIDDLE.match(line)]


def test_strings_keep_to_the_vocabulary():
    bad = []
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        found = {(line, hit) for line, text in texts(path) for hit in hits(text)}
        bad += [f"{name}:{line} {hit}" for line, hit in sorted(found) if hit not in EXCEPTIONS.get(name, ())]
    assert not bad, "\n".join(bad)


def test_pages_keep_to_the_vocabulary():
    bad = []
    for path in PAGES:
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        bad += [f"{path.name} {hit}" for hit in hits(prose)]
    assert not bad, "\n".join(bad)
