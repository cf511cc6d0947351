"""Values as Python programs print them, read without running Python.

The text is cut into tokens of a closed list and read by a grammar of strings, numbers, sums, lists, tuples, dicts and
calls of a closed list of functions (`range`, `list`, `dict`, `np.int64`, `tensor`, ...). Length and depth are bounded,
so that no text takes long or exhausts the stack (Python's own parser guarantees no such thing).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from nas_moreau.errors import InputError, quoted

MAX_DEPTH, MAX_NODES = 9, 64
MAX_CHARACTERS = 64 * 1024
"""Of one genotype."""
CURE = "Give genotype.json, Genotype(normal=[...], normal_concat=..., reduce=[...], reduce_concat=...), or |op~0|+..."
ROOTS = ("Genotype", "Structure")
"""What a printed architecture may be a call of."""

_LARGEST = 10**6
_SKIPPED = re.compile(r"(?:\s|#[^\n]*|\\\r?\n|\\[nt](?![A-Za-z0-9_]))*", re.ASCII)
_TOKEN = re.compile(
    r"""(?P<text>[uUbB]?(?:'[^'\\\n]{0,100}'|"[^"\\\n]{0,100}"|\\'[^'\\\n]{0,100}\\'|\\"[^"\\\n]{0,100}\\"))
      | (?P<number>(?:0+|[1-9]\d{0,18})(?:\.\d{0,30})?(?:[eE][+-]?\d{1,3})?(?![A-Za-z0-9_]))
      | (?P<name>[A-Za-z_][A-Za-z0-9_]{0,60}(?:\.[A-Za-z0-9_]{1,60}){0,3})
      | (?P<sign>[()\[\]{},=:+*-])""",
    re.VERBOSE | re.ASCII,
)
_CONSTANTS = {"None": None, "null": None, "True": True, "true": True, "False": False, "false": False}
_SCALAR = re.compile(r"u?int(8|16|32|64|_|p|c)?|float(16|32|64|_)?|str_?|bool_?|item")
Token = tuple[str, str]


class Call(NamedTuple):
    """A call of one of `ROOTS`: its arguments by position and by name."""

    name: str
    values: list[Any]
    fields: dict[str, Any]


class Piece(NamedTuple):
    """The tokens of one value, cut out of a longer text.

    Attributes:
        tokens: Kind and text of each.
        end: Where the text goes on.
        problem: Why the tokens end before the value does, or None.
    """

    tokens: list[Token]
    end: int
    problem: str | None


def refused(why: str, cure: str = CURE) -> InputError:
    """Returns the error for a text that is not a genotype."""
    return InputError(f"The text is not a genotype: {why}.", cure)


def is_whole(value: object) -> bool:
    """Returns whether `value` is an integer (True is not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def cut(text: str, start: int = 0) -> Piece:
    """Returns the tokens from `start` to where the brackets that open there are closed."""
    tokens: list[Token] = []
    open_brackets, place, last = 0, start, min(len(text), start + MAX_CHARACTERS)
    while True:
        skipped = _SKIPPED.match(text, place, last)
        place = skipped.end() if skipped else place
        if place >= last:
            end = "it ends before its brackets are closed" if open_brackets and last == len(text) else None
            return Piece(tokens, place, f"it is longer than {MAX_CHARACTERS:,} characters" if last < len(text) else end)
        match = _TOKEN.match(text, place)
        if not match:
            return Piece(tokens, place, f"it cannot be read from {quoted(text[place : place + 20])} on")
        assert match.lastgroup is not None
        kind, token = match.lastgroup, match[match.lastgroup]
        tokens.append((kind, token))
        place = match.end()
        if kind == "sign":
            open_brackets += (token in "([{") - (token in ")]}")
            if token in ")]}" and open_brackets <= 0:
                return Piece(tokens, place, None)


class Reader:
    """Reads one value from tokens.

    Args:
        piece: What `cut` returns.
    """

    def __init__(self, piece: Piece):
        self._tokens, self._problem, self._place = piece.tokens, piece.problem, 0

    def whole(self) -> Any:
        """Returns the value; InputError if it is none, or if more follows."""
        value = self._value(0)
        if self._peek()[0] != "end" or self._problem:
            raise self._unexpected(f"{quoted(self._peek()[1])} follows its end")
        return value

    def _peek(self, ahead: int = 0) -> Token:
        place = self._place + ahead
        return self._tokens[place] if place < len(self._tokens) else ("end", "the end")

    def _take(self, sign: str = "") -> Token:
        kind, token = self._peek()
        if sign and (kind, token) != ("sign", sign):
            raise self._unexpected(f"'{sign}' was expected before {quoted(token)}")
        self._place += 1
        return kind, token

    def _follows(self, sign: str, ahead: int = 0) -> bool:
        return self._peek(ahead) == ("sign", sign)

    def _unexpected(self, why: str) -> InputError:
        """Returns the error for a token; at the end of the tokens, that for what ended them."""
        return refused(self._problem if self._peek()[0] == "end" and self._problem else why)

    def _value(self, depth: int) -> Any:
        """Returns a value, or the sum, difference or product of small integers."""
        value = self._term(depth)
        while self._peek() in (("sign", "+"), ("sign", "-"), ("sign", "*")):
            sign = self._take()[1]
            other = self._term(depth)
            if not (is_whole(value) and is_whole(other) and max(abs(value), abs(other)) <= _LARGEST):
                raise refused(f"'{sign}' stands between values that are not small integers")
            value = value + other if sign == "+" else value - other if sign == "-" else value * other
        return value

    def _term(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise refused(f"it is nested more than {MAX_DEPTH} deep")
        negative = self._follows("-")
        if negative or self._follows("+"):
            self._take()
            kind, token = self._peek()
            if kind != "number":
                raise self._unexpected(f"a number was expected before {quoted(token)}")
        kind, token = self._peek()
        if kind == "number":
            self._take()
            number = int(token) if token.isdigit() else float(token)
            return -number if negative else number
        if kind == "end":
            raise self._unexpected(f"{quoted(token)} stands where a value was expected")
        self._take()
        if kind == "text":
            return token.lstrip("uUbB\\").replace("\\", "")[1:-1] if token[0] not in "'\"" else token[1:-1]
        if kind == "name":
            return self._named(token, depth)
        if token in "([":
            return self._sequence(")" if token == "(" else "]", depth)
        if token == "{":
            return self._dict(depth)
        raise refused(f"{quoted(token)} stands where a value was expected")

    def _sequence(self, end: str, depth: int) -> Any:
        """Returns a list; a lone value in parentheses is that value, as in Python."""
        values, comma = [], False
        while not self._follows(end):
            values.append(self._value(depth + 1))
            comma = self._comma(end)
        self._take(end)
        return values[0] if end == ")" and len(values) == 1 and not comma else values

    def _comma(self, end: str) -> bool:
        """Takes a comma, unless the end follows."""
        if self._follows(","):
            self._take()
            return True
        if not self._follows(end):
            raise self._unexpected(f"a comma was expected before {quoted(self._peek()[1])}")
        return False

    def _dict(self, depth: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        while not self._follows("}"):
            kind, key = self._peek()
            if kind != "text" or not self._follows(":", 1):
                raise self._unexpected(f"{quoted(key)} stands where a field was expected")
            name = self._term(depth + 1)
            self._take(":")
            self._put(fields, name, depth)
            self._comma("}")
        self._take("}")
        return fields

    def _put(self, fields: dict[str, Any], name: str, depth: int) -> None:
        if name in fields:
            raise refused(f"it has the field {name} twice")
        fields[name] = self._value(depth + 1)

    def _arguments(self, depth: int) -> tuple[list[Any], dict[str, Any]]:
        """Returns what stands between the parentheses of a call, by position and by name."""
        values: list[Any] = []
        fields: dict[str, Any] = {}
        while not self._follows(")"):
            kind, token = self._peek()
            if kind == "name" and self._follows("=", 1):
                self._take()
                self._take("=")
                if token in ("dtype", "device") and self._peek()[0] == "name":
                    self._take()  # of a tensor: torch.int64
                else:
                    self._put(fields, token, depth)
            elif fields:
                raise self._unexpected(f"{quoted(token)} stands where a field was expected")
            else:
                values.append(self._value(depth + 1))
            self._comma(")")
        self._take(")")
        return values, fields

    def _named(self, name: str, depth: int) -> Any:
        short = name.rpartition(".")[2]
        if not self._follows("("):
            if name in _CONSTANTS:
                return _CONSTANTS[name]
            raise self._unexpected(f"{quoted(name)} is not a value")
        known = short in (*ROOTS, "range", "list", "tuple", "dict", "OrderedDict", "array", "tensor")
        if not (known or _SCALAR.fullmatch(short)) or (short in ROOTS and depth):
            raise refused(f"it calls {quoted(name)}, which is not read inside a genotype")
        self._take("(")
        values, fields = self._arguments(depth)
        if short in ROOTS:
            return Call(short, values, fields)
        if short == "range":
            return _range(values)
        if short in ("dict", "OrderedDict"):
            return fields if not values else _dict_of_pairs(values[0])
        if len(values) != 1 or (short in ("list", "tuple") and not isinstance(values[0], list)):
            raise refused(f"{quoted(name)} is called with other values than one")
        if _SCALAR.fullmatch(short) and isinstance(values[0], list | dict):
            raise refused(f"{quoted(name)} is called with something else than a number or a text")
        return values[0]


def _range(bounds: list[Any]) -> list[int]:
    small = all(is_whole(bound) and 0 <= bound <= 2 * MAX_NODES for bound in bounds)
    if not (small and 1 <= len(bounds) <= 3 and (len(bounds) < 3 or bounds[2] > 0)):
        raise refused("its range is not one to three small numbers")
    return list(range(*bounds))


def _dict_of_pairs(pairs: Any) -> dict[str, Any]:
    if isinstance(pairs, dict):
        return pairs
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        raise refused("its dict is not a list of (name, value) pairs")
    if len({name for name, _ in pairs}) < len(pairs):
        raise refused("it has a field twice")
    return dict(pairs)
