"""CSV files with rows by epoch that can be truncated at an epoch and continued, byte for byte."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_moreau.errors import InputError
from nas_moreau.runs.atomic import write_atomic


class EpochTable:
    """A CSV file whose columns are those of its first row, one of them "epoch".

    Args:
        path: The file; created with its first rows.
        resume_from_epoch: Rows of this epoch and later ones are cut off, as is an incomplete last row.
    """

    def __init__(self, path: str | os.PathLike[str], resume_from_epoch: int = 0):
        self.path = Path(path)
        self.columns: tuple[str, ...] | None = None
        if not self.path.exists():
            return
        whole = self.path.read_bytes().rpartition(b"\n")[0].decode("utf-8")
        rows = list(csv.reader(io.StringIO(whole), strict=True))
        kept: list[list[str]] = []
        if rows and resume_from_epoch > 0:
            header = rows[0]
            if "epoch" not in header or len(set(header)) < len(header):
                raise InputError(f"{self.path} does not begin with the names of its columns.", "Restore the file.")
            place = header.index("epoch")
            kept = [row for row in rows[1:] if len(row) == len(header) and int(row[place]) < resume_from_epoch]
            if kept:
                self.columns = tuple(header)
        text = csv_text([list(self.columns), *kept]) if self.columns else ""
        write_atomic(self.path, text.encode("utf-8"))

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows and waits until they are on the disk.

        Numbers are written by `repr`, so that they read back exactly; 0-dim tensors as their number; None as "".

        Raises:
            InputError: A row has other columns than those of the file.
        """
        lines: list[list[str]] = []
        for row in rows:
            if self.columns is None:
                if "epoch" not in row:
                    raise ValueError("The first row of a table needs the column 'epoch'.")
                self.columns = tuple(row)
                lines.append(list(self.columns))
            if set(row) != set(self.columns):
                missing, new = sorted(set(self.columns) - set(row)), sorted(set(row) - set(self.columns))
                found = [f"missing are {', '.join(missing)}"] * bool(missing) + [f"new are {', '.join(new)}"] * bool(
                    new
                )
                raise InputError(
                    f"A row of {self.path} has other columns than the first one: {', '.join(found)}.",
                    "Resume the run with the same --import files as before, which register its metrics.",
                )
            lines.append([_cell(row[name]) for name in self.columns])
        if not lines:
            return
        with open(self.path, "ab") as file:
            file.write(csv_text(lines).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Returns rows as the text of a CSV file, one line each."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_table(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Returns the rows of a CSV file as text by column, without an incomplete last row; [] if there is no file."""
    file = Path(path)
    if not file.exists():
        return []
    whole = file.read_bytes().rpartition(b"\n")[0].decode("utf-8", "replace")
    rows = [row for row in csv.reader(io.StringIO(whole)) if row]
    return [dict(zip(rows[0], row)) for row in rows[1:] if len(row) == len(rows[0])] if rows else []


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "item"):  # tensors and NumPy numbers
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"A table holds numbers and text, not {value!r}.")
    return value if isinstance(value, str) else repr(value)
