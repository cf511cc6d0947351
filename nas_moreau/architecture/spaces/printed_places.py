"""Where genotypes stand in a text: logs of searches, source files with several cells, messages, or alone."""

from __future__ import annotations

import bisect
import logging
import math
import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from nas_moreau.architecture.spaces.printed_values import MAX_CHARACTERS, MAX_NODES, Piece, cut, refused
from nas_moreau.errors import InputError, meant, quoted

_log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_LISTED, MAX_PLACES = 12, 10_000
SEVERAL = "genotypes.py"
"""Stands in messages for the file that holds several genotypes."""
_CLEANED = (
    (re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]"), ""),  # colours of a terminal
    (re.compile(r"&(?:#0{0,3}39|#x0{0,2}27|apos|lsquo|rsquo);", re.I), "'"),  # a web page
    (re.compile(r"&(?:#0{0,3}34|#x0{0,2}22|quot|ldquo|rdquo);", re.I), '"'),
    (re.compile(r'""(?=\w)|(?<=\w)""'), '"'),  # a cell of a CSV file
    (re.compile(r"\|[ \t]+(?=[^\s|~+]{1,60}~\d)"), "|"),  # a spaced NAS-Bench-201 string
    (re.compile(r"(~\d{1,5})[ \t]+\|"), r"\1|"),
)
_TYPESET = str.maketrans("\u2018\u2019\u201c\u201d\u00a0\u202f\uff08\uff09\uff0c\uff1d", "''\"\"  (),=")
"""Quotes, blanks and brackets that word processors and web pages print."""
_FIELD = r"""\\?['"]?(?:normal|reduce|recurrent)(?:_concat)?\\?['"]?"""
_ANCHOR = re.compile(
    rf"""(?:Genotype|Structure|OrderedDict|dict)[ ]?\(
      | \{{(?=\s{{0,80}}{_FIELD})
      | \|(?=[^\s|~+]{{1,60}}~)""",
    re.VERBOSE | re.ASCII,
)
_CALL = re.compile(r"(?:Genotype|Structure) ?\((?!\d+ nodes)", re.ASCII)
_DICT = re.compile(
    rf"(?:\{{|(?:dict|OrderedDict) ?\(\s{{0,80}}[\[(]{{0,2}})\s{{0,80}}{_FIELD}\s{{0,80}}[:=,]", re.ASCII
)
_ITEM = re.compile(r"\|[^\s|~+]{1,60}~\d{1,5}\|", re.ASCII)
_MODULE = re.compile(r"(?<![\w.])(?:\w{1,60}\.){0,3}$", re.ASCII)
_PAIR = r"[^\s|~+]{0,60}~\d{0,5}\|"
_STRING = re.compile(rf"\|(?:{_PAIR})+(?:\s{{0,8}}\+\s{{0,8}}\|(?:{_PAIR})+){{0,{MAX_NODES}}}")
_STRAY = re.compile(
    r"""\b(?:normal|reduce)(?:_concat)?\\?['"]?\s{0,8}[=:,]\s{0,8}(?:[\[(]|range|list|tuple|np|array|tensor)""",
    re.ASCII,
)
_COUNTED = re.compile(r"Structure\((\d{1,3}) nodes with $")
_TIME = re.compile(r"[\[(]?\d[\d/:,. T_-]{3,40}(?:[AP]M)?[\])]?")
_LEVEL = re.compile(r"^(?:DEBUG|INFO|WARNING)\s+")
_NAMED = re.compile(r"""(?:^\s*(\w{1,60})\s*:\s*[\w.]{1,60}|\[\s*['"]([^'"\n]{1,60})['"]\s*\])\s*=$""")
"""`name: Genotype =` and `cells['name'] =`."""
_BETWEEN = re.compile(r":(?=\S)|: |\s-\s|[\]|>,;]|\s{2,}")
_AFTER = re.compile(r"""[ \t"'`)\]};,.\\]*(?:#.*|[|,;<][^\n()\[\]{}'"~=]*)?(?:\r?\n|$)""")


class Place(NamedTuple):
    """A genotype in a text.

    Attributes:
        label: Name that it is given there (`DARTS_V2 = ...`, `Best genotype: ...`), or "".
        line: Number of its line, from 1.
        piece: The tokens of a printed value, or None for a NAS-Bench-201 string.
        string: The NAS-Bench-201 string, or "".
        problem: Why it cannot be read whatever its tokens are, or None.
        commented: It stands in a comment.
    """

    label: str
    line: int
    piece: Piece | None
    string: str
    problem: str | None
    commented: bool


def find_places(text: str) -> list[Place]:
    """Returns the genotypes in a text in their order, those in comments only if there are no others.

    Raises:
        InputError: There are more than `MAX_PLACES`, or one is longer than `MAX_CHARACTERS`.
    """
    text = text.translate(_TYPESET)
    for pattern, plain in _CLEANED:
        text = pattern.sub(plain, text)
    lines = [0, *(match.end() for match in re.finditer("\n", text))]
    found: list[Place] = []
    starts: list[int] = []
    ends: list[float] = []
    end = 0
    for match in _ANCHOR.finditer(text):
        if match.start() < end or (start := _beginning(text, match.start())) is None:
            continue
        number = bisect.bisect_right(lines, start)
        before = text[max(lines[number - 1], start - 200) : start]
        if before.endswith(("class ", "def ", "import ")):
            continue
        if len(found) == MAX_PLACES:
            raise refused(f"it holds more than {MAX_PLACES:,} of them", "Give the one that is meant alone.")
        label, commented = _label(before, text, lines[number - 1]), "#" in before
        if text[start] == "|":
            piece, (string, end, problem) = None, _string(text, start, before)
        else:
            piece, string = cut(text, start), ""
            if piece.end - start >= MAX_CHARACTERS:
                raise refused(piece.problem or "it is too long")
            end, problem = piece.end, None
            rest = text[piece.end : piece.end + 200]
            if piece.problem is None and not _AFTER.match(rest):
                problem = f"{quoted(rest.strip()[:20])} follows its end"
        found.append(Place(label, number, piece, string, problem, commented))
        starts.append(start)
        ends.append(math.inf if problem or (piece and piece.problem) else end)
    damaged: set[int] = set()
    for match in (
        _STRAY.finditer(text) if starts else ()
    ):  # a genotype whose call cannot be recognised must not go unnoticed
        number, before_it = bisect.bisect_right(lines, match.start()), bisect.bisect_right(starts, match.start())
        line = text[max(lines[number - 1], match.start() - 400) : match.start()]
        inside = before_it > 0 and match.start() < ends[before_it - 1]
        if not inside and before_it not in damaged and "#" not in line:
            damaged.add(before_it)
            found.append(Place("", number, None, "", f"line {number} holds a damaged one", False))
    found.sort(key=lambda place: place.line)
    return [place for place in found if not place.commented] or found


def _beginning(text: str, place: int) -> int | None:
    """Returns where the genotype at an anchor begins, with the module that is named before it; None if it is none."""
    if text[place] == "|":
        return place if _ITEM.match(text, place) else None
    if not (_CALL.match(text, place) or _DICT.match(text, place)):
        return None
    if text[place] == "{":
        return place
    module = _MODULE.search(text, max(0, place - 200), place)
    return module.start() if module else None


def _string(text: str, start: int, before: str) -> tuple[str, int, str | None]:
    """Returns a NAS-Bench-201 string, where the text goes on, and what is wrong around it."""
    match = _STRING.match(text, start)
    string, end = (match[0], match.end()) if match else ("", start + 1)
    after, problem = text[end : end + 20], None
    counted = _COUNTED.search(before[-40:])
    if counted and int(counted[1]) != string.count("+") + 2:
        problem = f"it announces {counted[1]} nodes, and its string has {string.count('+') + 2}"
    elif re.search(r"(?:[|~+] {0,8}|\w)$", before[-9:]):
        problem = f"{quoted(before[-20:])} stands before its NAS-Bench-201 string"
    elif re.match(r"[\w-]|\s{0,8}[|~+]", after):
        problem = f"{quoted(after)} follows its NAS-Bench-201 string"
    return string, end, problem


def _label(before: str, text: str, line: int) -> str:
    """Returns the name that precedes a genotype, without times and the names of log levels."""
    before = _COUNTED.sub("", before).rstrip(" \t\"'`([{\\")
    if not before and line:
        above = text[max(0, line - 200) : line].rstrip(" \t\r\n(\\")
        before = above.rpartition("\n")[2] if above.endswith(("=", ":")) else ""
    if not before.endswith(("=", ":")):
        return ""
    if named := _NAMED.search(before):
        return named[1] or named[2]
    name = _TIME.sub(" ", before.rstrip("=: \t\"'"))
    name = _LEVEL.sub("", _BETWEEN.split(f" {name}")[-1].strip(" \t\"'#*`{(,"))
    return re.sub(r"\d+", "N", name) if " " in name else name[:60]


def choose(text: str, name: str | None, read: Callable[[Place], T]) -> T | None:
    """Returns the genotype of a text that holds one, or several of which one is meant; None if it holds none.

    Of several with one name (a log of a search, a variable that is assigned again) the last is meant, and a note is
    logged.

    Args:
        text: Any text.
        name: Name of the genotype, or the number of its line; None for the only one.
        read: Reads a genotype at a place.

    Raises:
        InputError: There are several and none is named, none has the name, or it cannot be read.
    """
    places = find_places(text)
    if name is not None:
        chosen = [place for place in places if name in (place.label, str(place.line))]
        if not chosen:
            known = [_described(place) for place in places][:MAX_LISTED]
            raise InputError(
                f"The text holds no genotype {quoted(name)}{meant(name, [place.label for place in places])}.",
                f"It holds {', '.join(known) or 'none at all'}.",
            )
    else:
        chosen = places
    if not chosen:
        return None
    if len(chosen) == 1:
        return read(chosen[0])
    labels = {place.label for place in chosen}
    if len(labels) == 1 and "" not in labels:
        place = chosen[-1]
        _log.info(
            "The text holds %d genotypes named %s; read is the last, of line %d.",
            len(chosen),
            quoted(place.label),
            place.line,
        )
        return read(place)
    return _all_equal(chosen, read)


def _all_equal(places: list[Place], read: Callable[[Place], T]) -> T:
    """Returns what all places hold; InputError with their names if they differ."""
    found: list[T] = []
    for place in places:
        try:
            value = read(place)
        except InputError:
            found.clear()
            break
        if found and value != found[0]:
            break
        found.append(value)
    if len(found) == len(places):
        return found[0]
    names = list(dict.fromkeys(map(_described, places)))
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    label = places[-1].label
    example = label if label and " " not in label else places[-1].line
    raise InputError(
        f"The text holds {len(places)} genotypes: {', '.join(names[:MAX_LISTED])}{more}.",
        f"Name the one that is meant after its file, for example {SEVERAL}:{example} "
        "(a number is that of a line), or give that one alone.",
    )


def _described(place: Place) -> str:
    return (
        place.label
        if place.label and " " not in place.label
        else f"line {place.line}" + (f" ({place.label})" if place.label else "")
    )


def piece_of(text: str) -> Piece:
    """Returns the tokens of a text that is one value."""
    if len(text) > MAX_CHARACTERS:
        raise refused(f"it has {len(text):,} characters, and no genotype was found in it")
    piece = cut(text)
    rest = text[piece.end :]
    if piece.problem is None and not _AFTER.match(rest):
        return piece._replace(problem=f"{quoted(rest.strip()[:20])} follows its end")
    return piece
