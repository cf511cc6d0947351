"""The table of columns: order of metrics.csv, charts that find their curves and no others, metrics of the user."""

from __future__ import annotations

import itertools
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nas_moreau.architecture import AlphaTable, load_space
from nas_moreau.architecture.spaces.alpha_table import EdgeWeights
from nas_moreau.errors import InputError
from nas_moreau.plugins import import_modules
from nas_moreau.report import write_report, write_several_runs
from nas_moreau.runs.board import board_layout, edge_curves, epoch_tag
from nas_moreau.runs.columns import CHARTS, COLUMNS, charts_of, find_column, in_order, register_metric
from nas_moreau.runs.tables import read_table
from nas_moreau.search.stage import search
from nas_moreau.training.signals import Interrupted

SPACE = load_space("toy")
NAMES = [
    "epoch",
    "lower_loss",
    "upper_loss",
    "upper_objective",
    "f_theta",
    "d_x",
    "d_y",
    "phi_x_y",
    "phi_x_theta",
    "F_x_over_c",
    "gap",
    "alpha_entropy_normal",
    "alpha_entropy_reduce",
    "discretisation_gap",
]


def test_every_column_has_a_chart_and_every_chart_a_column():
    shown = {column.chart for column in COLUMNS.values()}
    assert shown - {""} == set(CHARTS)
    assert all(name.removesuffix("*").isidentifier() for name in COLUMNS)
    titles = [(chart.section, chart.title) for chart in CHARTS.values()]
    assert len(set(titles)) == len(titles)


def test_rows_stand_in_the_order_of_the_table():
    row = {
        "wall_seconds": 1.0,
        "mine": 2,
        "margin_reduce": 3,
        "margin_normal": 4,
        "gap": 5,
        "lower_loss": 6,
        "epoch": 0,
    }
    assert list(in_order(row)) == [
        "epoch",
        "lower_loss",
        "margin_reduce",
        "margin_normal",
        "gap",
        "mine",
        "wall_seconds",
    ]
    assert in_order(row) == row


def test_a_column_of_each_cell_is_named_after_the_cell():
    assert find_column("margin_normal").title == "normal" and find_column("margin_normal").chart == "margin"
    assert find_column("nothing") is None


def test_every_chart_finds_its_curves_and_no_others():
    layout = board_layout(NAMES, AlphaTable.uniform(SPACE))
    tags = [epoch_tag(name) for name in NAMES] + list(edge_curves(AlphaTable.uniform(SPACE)))
    assert len(set(tags)) == len(tags)
    found = {}
    for section, titles in layout.items():
        for title, (kind, patterns) in titles.items():
            assert kind == "Multiline"
            hits = [[name for name in tags if re.match(pattern, name)] for pattern in patterns]
            assert all(len(hit) == 1 for hit in hits), (section, title, hits)
            found[section, title] = [hit[0] for hit in hits]

    def curves(key):
        return found[CHARTS[key].section, CHARTS[key].title]

    assert curves("losses") == ["loss/lower_loss", "loss/upper_loss", "loss/f_theta"]
    assert curves("terms") == ["theory/F_x_over_c", "theory/phi_x_y", "theory/phi_x_theta", "theory/d_x"]
    assert curves("alpha_entropy") == ["stability/alpha_entropy_normal", "stability/alpha_entropy_reduce"]
    assert "residual" not in charts_of(NAMES)  # there is no such column
    edges = [hits for (section, _), hits in found.items() if section.startswith("Softmax")]
    assert len(edges) == len(SPACE.cells) * len(SPACE.edges)
    assert all(len(hits) == len(SPACE.operations) for hits in edges)
    assert len(set(itertools.chain(*edges))) == len(edges) * len(SPACE.operations)


def test_tags_have_no_parentheses():
    """With them the CUSTOM SCALARS page of TensorBoard 2.20 throws, and draws nothing."""
    curves = edge_curves(AlphaTable({"normal": (EdgeWeights((0, 2), {"conv (mine)": 1.0}),)}))
    assert curves == {"weights_normal/0-2/conv _mine": 1.0}


def test_methods_without_alphas_or_envelope_get_no_empty_charts():
    assert list(charts_of(["epoch", "lower_loss", "held_out_accuracy"])) == ["losses", "accuracies"]
    assert list(charts_of(["epoch", "train_loss", "lr", "wall_seconds"])) == ["training_losses", "lr"]


def test_a_number_that_the_table_does_not_know_has_a_chart_of_its_own():
    assert charts_of(["epoch", "my_norm"])["my_norm"][1] == {"my_norm": "my_norm"}


def test_metrics_join_a_chart_or_make_one(registrations_forgotten):
    with registrations_forgotten():
        check_metrics()


def check_metrics():
    register_metric("a", title="first", unit="nats", group="sharpness")(lambda end: 1.0)
    register_metric("b", title="second", group="sharpness")(lambda end: 2.0)
    register_metric("c", title="third", group="losses")(lambda end: 3.0)
    found = charts_of(["lower_loss", "c", "b", "a"])
    assert found["losses"][1] == {"lower_loss": find_column("lower_loss").title, "c": "third"}
    chart, curves = found["sharpness"]
    assert (chart.title, chart.unit, curves) == ("sharpness", "nats", {"a": "first", "b": "second"})
    for name in ("a", "gap", "margin_normal", "no name", ""):
        with pytest.raises(InputError):
            register_metric(name, title="again")


METRIC = """
import os, signal
from nas_moreau import derive, register_metric

@register_metric("half_skips", title="half the skips", unit="edges", note="A metric of mine.")
def half_skips(end):
    if os.environ.get("STOP_AFTER") == str(end.epoch):
        os.environ.pop("STOP_AFTER")
        os.kill(os.getpid(), signal.SIGTERM)
    skips = sum(operation == "skip_connect" for operation, _, _ in end.genotype.cells["normal"].edges)
    end.alphas.check(end.space)
    assert end.genotype == derive(end.space, end.alphas) and end.step == 2 * (end.epoch + 1)
    return skips / 2 + end.row["held_out_accuracy"]
"""


def test_a_metric_from_a_file_of_the_user_is_in_the_table_the_board_and_the_report(
    registrations_forgotten, tmp_path, monkeypatch, tiny_config, tiny_data
):
    (tmp_path / "mine.py").write_text(METRIC)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with registrations_forgotten():
        import_modules([str(tmp_path / "mine.py")])
        search(tiny_config(), whole, data=tiny_data)
        rows = read_table(whole / "metrics.csv")
        page = write_report(whole).read_text()
        monkeypatch.setenv("STOP_AFTER", "1")
        with pytest.raises(Interrupted):
            search(tiny_config(), parts, data=tiny_data)
        search(tiny_config(), parts, resume=True, data=tiny_data)
        compared = write_several_runs([whole, parts], tmp_path / "c.html").read_text()
    assert len(rows) == 3 and list(rows[0])[-2:] == ["half_skips", "wall_seconds"]
    assert [row["half_skips"] for row in read_table(parts / "metrics.csv")] == [row["half_skips"] for row in rows]
    board = EventAccumulator(str(whole / "tensorboard")).Reload()
    shown = [event.value for event in board.Scalars("metrics/half_skips")]
    assert shown == pytest.approx([float(row["half_skips"]) for row in rows], rel=1e-6)
    assert "<h3>half the skips</h3>" in page and "A metric of mine." in page
    assert "<h3>half the skips</h3>" in compared
    # where the file is not imported the column is shown by its name
    assert "<h3>half_skips</h3>" in write_report(whole).read_text()


def test_resuming_without_the_file_of_a_metric_is_refused(
    registrations_forgotten, tmp_path, monkeypatch, tiny_config, tiny_data
):
    (tmp_path / "mine.py").write_text(METRIC)
    monkeypatch.setenv("STOP_AFTER", "0")
    with registrations_forgotten(), pytest.raises(Interrupted):
        import_modules([str(tmp_path / "mine.py")])
        search(tiny_config(), tmp_path / "run", data=tiny_data)
    with pytest.raises(InputError, match=r"half_skips.*--import"):
        search(tiny_config(), tmp_path / "run", resume=True, data=tiny_data)
