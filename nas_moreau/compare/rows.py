"""The rows of a comparison: one for each cell found, made from run folders, kept in rows.csv."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from nas_moreau.architecture import Genotype, percentile
from nas_moreau.compare.nas_bench_table import arch_string
from nas_moreau.errors import InputError
from nas_moreau.runs.history import Stage
from nas_moreau.runs.tables import csv_text, read_table
from nas_moreau.search.collapse import assess
from nas_moreau.search.short_training import TRAINED


@dataclass(frozen=True)
class Row:
    """A cell that a comparison found, and what is known of it. Accuracies and shares are fractions.

    Attributes:
        method: The search method.
        seed: The seed of the search.
        rule: The derivation rule, "budget" included, if it is not the space's own; None otherwise. A search with such
            a rule has two rows: the cell of the space's rule, and the one that the rule made of it.
        search: Name of the search's folder.
        digest: Digest of the genotype.
        genotype: The genotype as plain data.
        arch: NAS-Bench-201 string of the cell; None in other spaces.
        verdict: "healthy", "undecided" or "collapsed".
        idle_share: Share of idle edges (`search.collapse`).
        held_out_accuracy: Of the supernet; None for a random cell.
        table: Accuracy in the table.
        retrained_accuracy: Test accuracy after retraining.
        retrained_held_out_accuracy: Best validation accuracy of the retraining, whose weights were tested.
        parameters: Of the retrained network.
        tau_running: Kendall's tau of the supernet's one-hot losses and the table, with BatchNorm's running statistics.
        tau_batch: The same with the statistics of the batch.
        search_seconds: Wall-clock time of the search, and of the rule in its row.
        search_peak_memory_bytes: Of the search's process.
        retrain_seconds: Wall-clock time of the retraining.
        percentile: Predicted percentile of the cell among random ones, 0..100, the mean of both models
            (`architecture.percentile`); None for collapsed cells and cells of other spaces than DARTS.
        percentile_ridge: By the ridge regression.
        percentile_trees: By the regression trees.
        percentile_of_size: Of the mean, among random cells with as many parameters; None also if hardly any is so
            small or so large.
    """

    method: str
    seed: int
    rule: str | None
    search: str
    digest: str
    genotype: dict[str, Any]
    arch: str | None
    verdict: str
    idle_share: float
    held_out_accuracy: float | None = None
    table: float | None = None
    retrained_accuracy: float | None = None
    retrained_held_out_accuracy: float | None = None
    parameters: int | None = None
    tau_running: float | None = None
    tau_batch: float | None = None
    search_seconds: float | None = None
    search_peak_memory_bytes: int | None = None
    retrain_seconds: float | None = None
    percentile: float | None = None
    percentile_ridge: float | None = None
    percentile_trees: float | None = None
    percentile_of_size: float | None = None

    @property
    def label(self) -> str:
        """The method, with the rule if there is one: "moreau" or "moreau +selection"."""
        return label(self.method, self.rule)

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as plain data, for result.json."""
        return asdict(self)

    def retrained(self, folder: Path) -> Row:
        """Returns the row with the outcome of the finished retraining in `folder`."""
        stage = Stage(folder, "retrain")
        validation = [value for value in stage.metrics.get("validation_accuracy", []) if value is not None]
        return replace(
            self,
            retrained_accuracy=stage.result["test_accuracy"],
            retrained_held_out_accuracy=max(validation, default=None),
            parameters=stage.result["parameters"],
            retrain_seconds=stage.result["wall_seconds"],
        )


COLUMNS = tuple(field.name for field in fields(Row))
_TEXTS = ("method", "rule", "search", "digest", "arch", "verdict")


def label(method: str, rule: str | None) -> str:
    """Returns the name of a group of rows."""
    return method if rule is None else f"{method} +{rule}"


def folder_name(method: str, seed: int) -> str:
    """Returns the name of a search's folder; a method of the user may have any name."""
    safe = re.sub(r"[^A-Za-z0-9._+-]", "_", method)
    return f"{safe if safe == method else f'{safe}-{sha256(method.encode()).hexdigest()[:8]}'}-seed{seed}"


def rows_of_search(method: str, seed: int, folder: Path) -> Iterator[Row]:
    """Yields the row of a finished search; two where another rule than the space's changed its cell.

    Args:
        method: The method.
        seed: The seed.
        folder: The run folder of the search.
    """
    search = Stage(folder, "search")
    result = search.result
    cells: list[tuple[str | None, dict[str, Any], float]] = [(None, result["genotype"], result["wall_seconds"])]
    if "before_rule" in result:
        derived = result["derived_by"]
        rules = ([derived["rule"]] if derived["rule"] != "space" else []) + ["budget"] * ("budget" in derived)
        cells.append(("+".join(rules), *cells[0][1:]))
        # the last epoch's end: the result's seconds include those of the rule
        before = search.last("wall_seconds") or result["wall_seconds"]
        cells[0] = (None, result["before_rule"]["genotype"], before)
    for rule, data, spent in cells:
        genotype = Genotype.from_json(data)
        trained = rule is not None and TRAINED in rule.split("+")
        health, rank = assess(genotype, search.final_alphas, trained), percentile(genotype)
        yield Row(
            method,
            seed,
            rule,
            search=folder.name,
            digest=genotype.digest(),
            genotype=genotype.to_dict(),
            arch=arch_string(genotype),
            verdict=health.verdict,
            idle_share=health.idle_share,
            held_out_accuracy=result["held_out_accuracy"],
            search_seconds=spent,
            search_peak_memory_bytes=result["peak_memory_bytes"],
            percentile=None if rank is None else rank.mean,
            percentile_ridge=None if rank is None else rank.ridge,
            percentile_trees=None if rank is None else rank.trees,
            percentile_of_size=None if rank is None else rank.of_size,
        )


def read_rows(path: Path) -> dict[str, list[Row]]:
    """Returns the rows that an earlier call recorded, by the name of their search's folder.

    Raises:
        InputError: A line is damaged, or the file has other columns.
    """
    found: dict[str, list[Row]] = {}
    for line, text in enumerate(read_table(path), 2):
        try:
            values = {name: _value(name, value) for name, value in text.items()}  # older files have fewer columns
            Genotype.from_json(values["genotype"])
            row = Row(**values)
        except (KeyError, ValueError, TypeError):
            raise InputError(f"{path}, line {line}, is damaged.", "Delete that line and resume.") from None
        found.setdefault(row.search, []).append(row)
    return found


def rows_file(rows: Iterable[Row]) -> bytes:
    """Returns the contents of rows.csv."""
    texts = ([_text(name, value) for name, value in row.to_dict().items()] for row in rows)
    return csv_text([COLUMNS, *texts]).encode("utf-8")


def _value(name: str, text: str) -> Any:
    return None if not text else text if name in _TEXTS else json.loads(text)


def _text(name: str, value: Any) -> str:
    return "" if value is None else value if name in _TEXTS else json.dumps(value)
