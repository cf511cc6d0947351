"""Ages of runs, and the one line that says what a cell is made of."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone

import pytest

from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.cli import listing
from nas_moreau.drawing.operation_style import operations_line

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        ({"seconds": 59}, "just now"),
        ({"seconds": -30}, "just now"),
        ({"minutes": 1}, "1 min ago"),
        ({"minutes": 59, "seconds": 59}, "59 min ago"),
        ({"hours": 3, "minutes": 40}, "3 h ago"),
        ({"days": 1}, "1 day ago"),
        ({"days": 400}, "400 days ago"),
    ],
)
def test_ages(ago, text):
    assert listing.age((NOW - timedelta(**ago)).strftime("%Y-%m-%dT%H:%M:%SZ"), NOW) == text


@pytest.mark.parametrize("moment", ["", "yesterday", None, 3, "2026-03-01T12:00:00"])
def test_what_is_no_moment_has_no_age(moment):
    assert listing.age(moment, NOW) == "?"


def test_runs_are_listed_with_their_age(tmp_path):
    (tmp_path / "a").mkdir()
    updated = (datetime.now(timezone.utc) - timedelta(hours=3, minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    status = {"stage": "search", "state": "finished", "updated": updated}
    (tmp_path / "a" / "status.json").write_text(json.dumps(status))
    (row,) = listing.runs(tmp_path)
    assert row["age"] == "3 h ago" and row["state"] == "finished" and row["verdict"] == "-"
    result = {"held_out_accuracy": 0.25, "health": {"verdict": "collapsed"}}
    (tmp_path / "a" / "result.json").write_text(json.dumps(result))
    (tmp_path / "a" / "config.yaml").write_text("search: {method: darts1}\ndata: {name: shapes}\n")
    (row,) = listing.runs(tmp_path)
    assert row["accuracy"] == "25.00 %" and row["verdict"] == "collapsed"
    assert row["of"].startswith("supernet") and (row["method"], row["data"]) == ("darts1", "shapes")
    columns = list(row)
    (tmp_path / "a" / "result.json").write_text("{")
    (row,) = listing.runs(tmp_path)
    assert row["state"] == "unreadable" and list(row) == columns


def test_a_cell_in_words_counts_every_edge():
    genotype = published_cell("DARTS_V2")
    text = operations_line(genotype)
    assert text == ("normal: 5 sep conv 3×3, 2 skip, 1 dil conv 3×3; reduce: 5 max pool 3×3, 3 skip")
    for name, part in zip(genotype.cells, text.split(";")):
        assert sum(map(int, re.findall(r"(?<!\S)(\d+) ", part))) == len(genotype.cells[name].edges)


@pytest.mark.parametrize(("stage", "method"), [("search", "darts1"), ("retrain", "-"), ("compare", "-")])
def test_the_method_of_a_configuration_is_shown_where_it_was_used(tmp_path, stage, method):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "status.json").write_text(json.dumps({"stage": stage, "state": "finished"}))
    (tmp_path / "a" / "config.yaml").write_text("search: {method: darts1}")
    assert [row["method"] for row in listing.runs(tmp_path)] == [method]
