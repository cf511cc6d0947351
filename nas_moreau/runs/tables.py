"""CSV files with rows by epoch that can be truncated at an epoch and continued, byte for byte."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from nas_moreau.errors import InputError, first_line
from nas_moreau.runs.atomic import append_durable, write_atomic
from nas_moreau.runs.manifest import read_recorded, record_table
from nas_moreau.runs.plain_files import CURE

MAX_CELLS = 1 << 22
"""Of a table that is read: eight times what 600 epochs of the largest search space have."""


class EpochTable:
    """A CSV file whose columns are those of its first row, one of them "epoch".

    Args:
        path: The file; created with its first rows. The lock of its folder is held.
        resume_from_epoch: Rows of this epoch and later ones are cut off, as is an incomplete last row. The epochs
            before must all be there.

    Raises:
        InputError: The file is damaged, or an epoch is missing.
    """

    def __init__(self, path: str | os.PathLike[str], resume_from_epoch: int = 0):
        self.path, self._begin = Path(path), resume_from_epoch
        self.columns: tuple[str, ...] | None = None
        self._written, self._hash = 0, hashlib.sha256()
        whole = read_recorded(self.path)
        if whole is None:
            return
        kept = self._kept(whole) if resume_from_epoch else []
        if kept:
            self.columns = tuple(kept[0])
        data = csv_text(kept).encode("utf-8")
        self._add(data)
        write_atomic(self.path, data)

    def _kept(self, whole: bytes) -> list[list[str]]:
        """Returns the names of the columns and the rows to keep."""
        header, *rows = _rows(self.path, whole) or [[]]
        if "epoch" not in header or len(set(header)) < len(header):
            raise InputError(f"{self.path} does not begin with the names of its columns.", CURE)
        place = header.index("epoch")
        try:
            kept = [(int(row[place]), row) for row in rows if len(row) == len(header)]
        except ValueError:
            raise InputError(f"{self.path} has a row without the number of its epoch.", CURE) from None
        kept = [(epoch, row) for epoch, row in kept if epoch < self._begin]
        counts = Counter(epoch for epoch, _ in kept)
        in_order = all(first <= second for (first, _), (second, _) in pairwise(kept))
        complete = len(counts) == self._begin and min(counts, default=0) >= 0 and len(set(counts.values())) <= 1
        if not complete or not in_order:
            raise InputError(f"{self.path} lacks rows of the {self._begin} epochs that are done.", CURE)
        return [header, *(row for _, row in kept)]

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows and waits until they are on the disk.

        Numbers are written by `repr`, so that they read back exactly; 0-dim tensors as their number; None as "".

        Raises:
            InputError: A row has other columns than those of the file, or the file of a resumed run is missing.
            DiskFull: No space is left; no row was added.
        """
        lines: list[list[str]] = []
        for row in rows:
            if self.columns is None:
                if "epoch" not in row:
                    raise ValueError("The first row of a table needs the column 'epoch'.")
                if self._begin:
                    raise InputError(f"{self.path} is missing: the run is resumed at epoch {self._begin}.", CURE)
                self.columns = tuple(row)
                lines.append(list(self.columns))
            if set(row) != set(self.columns):
                missing, new = sorted(set(self.columns) - set(row)), sorted(set(row) - set(self.columns))
                found = [f"missing are {', '.join(missing)}"] * bool(missing)
                found += [f"new are {', '.join(new)}"] * bool(new)
                raise InputError(
                    f"A row of {self.path} has other columns than the first one: {', '.join(found)}.",
                    "Resume the run with the same --import files as before, which register its metrics.",
                )
            lines.append([_cell(row[name]) for name in self.columns])
        if lines:
            data = csv_text(lines).encode("utf-8")
            append_durable(self.path, data)
            self._add(data)

    def _add(self, data: bytes) -> None:
        """Records that `data` follows what was recorded before."""
        self._hash.update(data)
        self._written += len(data)
        record_table(self.path, self._written, self._hash.hexdigest())


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Returns rows as the text of a CSV file, one line each."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_table(path: str | os.PathLike[str], most_rows: int = MAX_CELLS) -> list[dict[str, str]]:
    """Returns the rows of a CSV file as text by column, without an incomplete last row; [] if there is no file.

    Args:
        path: The file.
        most_rows: A table with more rows is refused before it is taken apart.

    Raises:
        InputError: It is damaged, too large, or not what was recorded.
    """
    whole = read_recorded(Path(path))
    if whole is not None:
        count = whole.count(b"\n")
        if count > most_rows + 1 or count * (whole[: whole.find(b"\n")].count(b",") + 1) > MAX_CELLS:
            raise InputError(f"{path} has {count - 1:,} rows, more than any run writes.", CURE)
    rows = [] if whole is None else [row for row in _rows(Path(path), whole) if row]
    return [dict(zip(rows[0], row)) for row in rows[1:] if len(row) == len(rows[0])] if rows else []


def _rows(path: Path, whole: bytes) -> list[list[str]]:
    try:
        text = whole.rpartition(b"\n")[0].decode("utf-8")
        return list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is not a table ({first_line(error)}).", CURE) from None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "item"):  # tensors and NumPy numbers
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"A table holds numbers and text, not {value!r}.")
    return value if isinstance(value, str) else repr(value)
