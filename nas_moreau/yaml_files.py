"""YAML files of users as plain data: bounded in size and depth, without aliases, tags or doubled keys.

All that could make a small file large or slow is refused while it is read piece by piece, before anything is built.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from nas_moreau.errors import InputError

MAX_BYTES, MAX_DEPTH = 64 * 1024, 8
_MAX_DIGITS = 400  # of one number: Python is slow on longer ones
# libyaml's parser is ten times faster; it recurses on deep files, which is why the depth is known before it builds
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")


class _Loader(_PARSER):  # type: ignore[misc]
    """Reads 1e-3 and 1.5e2, which are text in YAML 1.1, as numbers."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, [*"-+.0123456789"])
_NUMBER = re.compile(
    r"[-+]?(0|[1-9][0-9]*|[0-9]+[eE][-+]?[0-9]+|[0-9]*\.[0-9]*([eE][-+]?[0-9]+)?|\.(inf|Inf|INF|nan|NaN|NAN))$"
)
"""Numbers as everybody reads them; YAML 1.1 has 010 (eight), 0x10, 1_000 and 1:30 (ninety) too."""


def read_text(path: Path, what: str, limit: int = MAX_BYTES) -> str:
    """Returns the text of a small UTF-8 file.

    Args:
        path: The file.
        what: Name of the file in messages, "The configuration".
        limit: Largest size in bytes.

    Raises:
        InputError: It is missing, not a plain file, larger than the limit, unreadable or not UTF-8.
    """
    try:
        if not path.is_file():
            reason = "is not a plain file" if path.exists() else "does not exist"
            raise InputError(f"{what} {path} cannot be read: it {reason}.", "Check the path.")
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise InputError(f"{what} {path} is larger than {limit // 1024:,} KiB.", "Check that it is the right file.")
        return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8")  # PowerShell's >
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start:,})"
        raise InputError(f"{what} {path} {reason}.", "Save it as UTF-8, or check that it is the right file.") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} {path} cannot be read: {error}.", "Check the file and its permissions.") from None


def parse_yaml(text: str, where: str, cure: str) -> Any:
    """Returns the plain data that a YAML text holds.

    Args:
        text: One document, at most 64 KiB.
        where: What messages call it.
        cure: Second sentence of messages that have no better one.

    Raises:
        InputError: It is not valid YAML, or is larger, deeper or more tangled than a file of ours can be.
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"{where} is larger than {MAX_BYTES // 1024} KiB.", cure)
    try:
        depth = 0
        # events come one by one and build nothing, so that depth and aliases are known before anything is made of them
        for event in yaml.parse(text, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise InputError(f"{where} is nested more than {MAX_DEPTH} deep.", cure)
            if isinstance(event, yaml.AliasEvent):
                raise InputError(f"{where} uses a YAML alias (*{event.anchor}).", "Write the value out.")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            _check_numbers(node, where, cure)
            data = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
        doubled = list(_doubled_keys(node))
    except Exception as error:  # an impossible date, a list as a key, a number without digits, !!bool maybe
        if isinstance(error, InputError):
            raise
        if "maximum nesting depth" in str(error):  # PyYAML 6.0.4 and later have this bound too
            raise InputError(f"{where} is nested more than {MAX_DEPTH} deep.", cure) from None
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or (str(error).splitlines() or ["it cannot be read"])[0]
        line = f" (line {mark.line + 1})" if mark else ""
        if mark and "cannot start any token" in reason and text.splitlines()[mark.line].lstrip(" ").startswith("\t"):
            reason = "a line is indented by a tab, where YAML takes blanks"
        raise InputError(f"{where} is not valid YAML: {reason[:200]}{line}.", cure) from None
    if doubled:
        raise InputError(f"{where} has the key {', '.join(doubled[:5])} twice.", "Keep one of them.")
    return data


def _check_numbers(node: Any, where: str, cure: str) -> None:
    """Refuses numbers of absurd length, and those that are not what they look like (010, 1:30)."""
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > _MAX_DIGITS and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            raise InputError(f"{where} holds a number of {len(node.value):,} characters.", cure)
        if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and not _NUMBER.match(node.value):
            raise InputError(
                f"{where} holds the number {node.value}, which YAML reads in its own way.",
                "Write it in plain digits without leading zeros, or in quotes if it is text.",
            )
    elif node is not None:
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                _check_numbers(part, where, cure)


def _doubled_keys(node: Any) -> Iterator[str]:
    """Yields the keys that stand twice in one mapping, anywhere under `node` (its depth is bounded already)."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _doubled_keys(child)
    elif isinstance(node, yaml.MappingNode):
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        yield from (repr(key[:60]) for key, count in counts.items() if count > 1)
        for _, child in node.value:
            yield from _doubled_keys(child)
