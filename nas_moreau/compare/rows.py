"""The rows of a comparison: one for each cell found, made from run folders, kept in rows.csv."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from nas_moreau.architecture import Genotype
from nas_moreau.compare.nas_bench_table import name_of
from nas_moreau.errors import InputError
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.runs.history import Stage
from nas_moreau.runs.tables import csv_text, read_table
from nas_moreau.search.collapse import assess

Row = dict[str, Any]
COLUMNS = (
    "method", "seed", "digest", "arch", "table", "retrained_accuracy", "retrained_held_out_accuracy",
    "held_out_accuracy", "verdict", "idle_share", "parameters", "tau_running", "tau_batch", "search_seconds",
    "search_peak_memory_bytes", "retrain_seconds", "search", "genotype",
)  # fmt: skip
_TEXTS = ("method", "digest", "arch", "verdict", "search")


def folder_name(method: str, seed: int) -> str:
    """Returns the name of a search's folder; a method of the user may have any name."""
    safe = re.sub(r"[^A-Za-z0-9._+-]", "_", method)
    return f"{safe if safe == method else f'{safe}-{sha256(method.encode()).hexdigest()[:8]}'}-seed{seed}"


def rows_of_search(method: str, seed: int, folder: Path) -> Iterator[Row]:
    """Yields the row of a finished search; two where a rule changed the cell that the alphas stand for.

    Args:
        method: As the row names it; the second row adds the rule.
        seed: The search's.
        folder: Its run folder.
    """
    search = Stage(folder, "search")
    result = search.result
    seconds = result["wall_seconds"]
    cells = [(method, result["genotype"], seconds)]
    if "before_rule" in result:
        applied = [result["derived_by"]["rule"]] if result["derived_by"]["rule"] != "space" else []
        applied += ["budget"] if "budget" in result["derived_by"] else []
        # the last epoch's end: the result's seconds hold what the rule took
        before = search.last("wall_seconds") or seconds
        cells = [(method, result["before_rule"]["genotype"], before)]
        cells.append((" +".join([method, *applied]), result["genotype"], seconds))
    for label, data, seconds in cells:
        genotype = Genotype.from_json(data)
        health = assess(genotype, search.final_alphas)
        yield dict.fromkeys(COLUMNS) | {
            "method": label, "seed": seed, "digest": genotype.digest(), "genotype": genotype.to_dict(),
            "arch": name_of(genotype),
            "held_out_accuracy": result["held_out_accuracy"],
            "verdict": health.verdict, "idle_share": health.idle_share,
            "search_seconds": seconds,
            "search_peak_memory_bytes": result["peak_memory_bytes"], "search": folder.name,
        }  # fmt: skip


def retrained_figures(folder: Path) -> Row:
    """Returns what a finished retraining adds to a row."""
    trained = Stage(folder, "retrain")
    result, column = trained.result, trained.metrics.get("validation_accuracy", [])
    return {
        "retrained_accuracy": result["test_accuracy"], "parameters": result["parameters"],
        # the weights that are reported are those of the best epoch on these images
        "retrained_held_out_accuracy": max((value for value in column if value is not None), default=None),
        "retrain_seconds": result["wall_seconds"],
    }  # fmt: skip


def read_rows(path: Path) -> dict[str, list[Row]]:
    """Returns the rows that an earlier call recorded, by the name of their search's folder.

    Raises:
        InputError: A line is damaged.
    """
    found: dict[str, list[Row]] = {}
    for line, text in enumerate(read_table(path), 2):
        try:
            row: Row = {name: text[name] or None for name in COLUMNS}
            for name in COLUMNS:
                if name not in _TEXTS and row[name] is not None:
                    row[name] = json.loads(row[name])
            Genotype.from_json(row["genotype"])
            found.setdefault(row["search"], []).append(row)
        except (KeyError, ValueError, TypeError):
            raise InputError(f"{path}, line {line}, is damaged.", "Delete that line and resume.") from None
    return found


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows.csv anew, at once."""
    texts = ([_text(row[name], name in _TEXTS) for name in COLUMNS] for row in rows)
    write_atomic(path, csv_text([COLUMNS, *texts]).encode("utf-8"))


def _text(value: Any, plain: bool) -> str:
    return "" if value is None else value if plain else json.dumps(value)
