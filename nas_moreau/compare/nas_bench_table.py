"""Tables of NAS-Bench-201: the accuracy of every cell of the space, trained by the authors of the benchmark."""

from __future__ import annotations

import csv
import gzip
import io
import math
import statistics
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from nas_moreau.architecture import Genotype, SearchSpace, load_space
from nas_moreau.architecture.spaces.genotype_text import read_nas_bench_201, write_nas_bench_201
from nas_moreau.errors import InputError, did_you_mean

SPACE = "nas_bench_201"
DEFAULT_COLUMN = "c10_test_200ep"
MAX_BYTES = 200_000_000
"""Limit of an unpacked file; the whole benchmark with five columns has 2 MB."""
CURE = "Give a CSV file (or .csv.gz) with a column 'arch' of NAS-Bench-201 strings and columns of numbers."


@dataclass(frozen=True)
class BenchmarkTable:
    """Numbers about cells of the NAS-Bench-201 space.

    Attributes:
        path: The file it was read from.
        columns: Names of the columns of numbers, in the file's order.
        cells: NAS-Bench-201 string -> numbers, in the order of `columns`.
    """

    path: str
    columns: tuple[str, ...]
    cells: dict[str, tuple[float, ...]]

    def __str__(self) -> str:
        return f"{len(self.cells):,} cells of {self.path}, columns {', '.join(self.columns)}"

    def look_up(self, genotype: Genotype) -> dict[str, float]:
        """Returns the numbers of a cell by column, as in the file.

        Raises:
            InputError: The genotype is of another space, or the table does not hold it.
        """
        name = arch_string(genotype)
        if name is None:
            raise InputError(
                f"The genotype is of space '{genotype.space}', and the table holds cells of {SPACE}.",
                f"Search with space={SPACE}, or leave --table out.",
            )
        if name not in self.cells:
            raise InputError(
                f"The table {self.path} does not hold the cell {name}.", "Give a table of the whole benchmark."
            )
        return dict(zip(self.columns, self.cells[name]))

    def pick_column(self, name: str | None = None) -> str:
        """Returns the column of that name; without a name c10_test_200ep, or else the only column there is.

        Raises:
            InputError: There is no such column, or it is not clear which one is meant.
        """
        if name is not None:
            if name not in self.columns:
                raise InputError(f"The table {self.path} has no column '{name}'.", did_you_mean(name, self.columns))
            return name
        if DEFAULT_COLUMN in self.columns:
            return DEFAULT_COLUMN
        if len(self.columns) == 1:
            return self.columns[0]
        raise InputError(
            f"The table {self.path} has {len(self.columns)} columns and none named {DEFAULT_COLUMN}.",
            f"Choose one with --column: {', '.join(self.columns)}.",
        )

    def numbers(self, column: str) -> dict[str, float]:
        """Returns NAS-Bench-201 string -> number of one column, as in the file."""
        place = self.columns.index(column)
        return {name: numbers[place] for name, numbers in self.cells.items()}

    def accuracies(self, column: str) -> dict[str, float]:
        """Returns NAS-Bench-201 string -> accuracy (0..1); a column with a number above 1 is taken as per cent.

        Raises:
            InputError: The column holds no accuracies.
        """
        numbers = self.numbers(column)
        low, high = min(numbers.values()), max(numbers.values())
        if low < 0 or high > 100:
            raise InputError(
                f"The column '{column}' of {self.path} holds {low:g} to {high:g}, which are not accuracies.",
                f"Choose another one with --column: {', '.join(self.columns)}.",
            )
        return {name: number / 100 for name, number in numbers.items()} if high > 1 else numbers


@dataclass(frozen=True)
class AccuracyColumn:
    """A column of accuracies in a table.

    Attributes:
        table: The table.
        name: The column.
    """

    table: BenchmarkTable
    name: str

    @cached_property
    def accuracies(self) -> dict[str, float]:
        """NAS-Bench-201 string -> accuracy (0..1); see `BenchmarkTable.accuracies`."""
        return self.table.accuracies(self.name)

    def of(self, genotype: Genotype) -> float:
        """Returns the accuracy (0..1) of a cell; InputError if the table does not have it."""
        self.table.look_up(genotype)
        return self.accuracies[genotype.to_nas_bench_201()]


def arch_string(genotype: Genotype) -> str | None:
    """Returns the NAS-Bench-201 string of a cell of three nodes with one edge between any two; None of another one."""
    cell = genotype.cells.get("cell")
    if cell is None or cell.concat != (3,) or {(a, b) for _, a, b in cell.edges} != set(load_space(SPACE).edges):
        return None
    return genotype.to_nas_bench_201() if len(cell.edges) == 6 else None


def same_cells(space: SearchSpace) -> bool:
    """Returns whether a space holds the cells of NAS-Bench-201, by whatever name and order of its operations."""
    own = load_space(SPACE)
    return (space.skeleton, space.edges, set(space.choices)) == (own.skeleton, own.edges, set(own.choices))


def load_table(path: str | PathLike[str]) -> BenchmarkTable:
    """Returns the table of a CSV file, packed by gzip or not; columns may stand in any order.

    Args:
        path: A file with a header, a column `arch` (NAS-Bench-201 strings) and at least one column of numbers.

    Raises:
        InputError: The file cannot be read, or a line is not valid; the message has its number.
    """
    lines = csv.reader(io.StringIO(_read(Path(path)), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        _check_header(header, path)
        place = header.index("arch")
        columns = tuple(name for name in header if name != "arch")
        cells: dict[str, tuple[float, ...]] = {}
        choices = frozenset(load_space(SPACE).choices)
        for fields in lines:
            if not fields:
                continue
            where = f"{path}, line {lines.line_num}"
            if len(fields) != len(header):
                raise InputError(f"{where} has {len(fields)} fields where the header has {len(header)}.", CURE)
            name = _canonical(fields.pop(place), choices, where)
            if name in cells:
                raise InputError(f"{where} holds the cell {name} a second time.", "Keep one of the two lines.")
            cells[name] = tuple(_number(text, column, where) for text, column in zip(fields, columns))
    except csv.Error as error:
        raise InputError(f"{path}, line {lines.line_num}, is not CSV: {error}.", CURE) from None
    if not cells:
        raise InputError(f"{path} holds no cell.", CURE)
    return BenchmarkTable(str(path), columns, cells)


def _read(path: Path) -> str:
    if path.exists() and not path.is_file():  # reading a pipe would wait for it
        raise InputError(f"The table {path} cannot be read: it is not a plain file.", CURE)
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.open(file) if packed else nullcontext(file) as plain:
                data = plain.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or (
            "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "it is a damaged gzip file"
        )
        raise InputError(f"The table {path} cannot be read: {reason}.", CURE) from None
    if len(data) > MAX_BYTES:
        raise InputError(f"The table {path} is larger than {MAX_BYTES:,} bytes.", CURE)
    return text


def _check_header(header: Sequence[str], path: Any) -> None:
    if "arch" not in header:
        shown = ", ".join(header)[:100] or "empty"
        raise InputError(f"The first line of {path} has no column 'arch' (it is: {shown}).", CURE)
    if len(set(header)) < len(header) or "" in header:
        raise InputError(f"The first line of {path} has a column twice or without a name.", CURE)
    if len(header) < 2:
        raise InputError(f"{path} has no column of numbers next to 'arch'.", CURE)


def _canonical(text: str, choices: frozenset[str], where: str) -> str:
    """Returns the string as `Genotype.to_nas_bench_201` writes it."""
    try:
        edges, concat = read_nas_bench_201(text.strip())
    except InputError as error:
        raise InputError(f"{where}: {error.cause}", CURE) from None
    if concat != [3] or not choices.issuperset(operation for operation, _, _ in edges):
        raise InputError(f"{where}: '{text[:120]}' is not a cell of {SPACE}.", CURE)
    by_place = {(source, node): operation for operation, source, node in edges}
    return write_nas_bench_201(by_place, 3)


def _number(text: str, column: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: {column} is '{text[:40]}', which is not a finite number.", CURE)
    return number


def baselines(table: BenchmarkTable, column: str) -> list[dict[str, Any]]:
    """Returns exact statistics of all cells, those without `none`, those of convolutions alone and the best one.

    Each: `name n mean std min max`, accuracies (0..1); std is the population's.

    Args:
        table: The table; groups without a cell in it are left out.
        column: Which accuracies.
    """
    accuracies = table.accuracies(column)
    groups: list[tuple[str, Callable[[set[str]], bool]]] = [
        ("all cells", lambda operations: True),
        ("cells without none", lambda operations: "none" not in operations),
        ("convolution-only cells", lambda operations: operations <= {"nor_conv_1x1", "nor_conv_3x3"}),
    ]
    found = []
    for name, belongs in groups:
        values = [accuracy for arch, accuracy in accuracies.items() if belongs(operations_of(arch))]
        if values:
            found.append(_row(name, values))
    return [*found, _row("best cell", [max(accuracies.values())])]


def operations_of(arch: str) -> set[str]:
    """Returns the operations of a NAS-Bench-201 string."""
    return {pair.partition("~")[0] for pair in arch.replace("+", "").split("|") if pair}


def _row(name: str, values: Sequence[float]) -> dict[str, Any]:
    return {
        "name": name,
        "n": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.pstdev(values),
        "min": min(values),
        "max": max(values),
    }
