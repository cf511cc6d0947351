"""A user's file given by --import: what it registers is known to every verb, in child processes too."""

import json
import sys
from pathlib import Path

import pytest

from nas_moreau.cli import main
from nas_moreau.diagnostics import plan
from nas_moreau.runs.tables import read_table

USERS_FILE = """
import torch
from torch import nn

from nas_moreau import Mixing, register_method, register_mixing
from nas_moreau.architecture import NetworkPart, Skeleton, register_block, register_operation, register_skeleton
from nas_moreau.architecture.spaces.genotype import Cell
from nas_moreau.bilevel.rivals.darts import darts1
from nas_moreau.data import Images, Loaded, register_source
from nas_moreau.runs import register_metric
from nas_moreau.search import register_rule


@register_operation("plain_conv")
def plain_conv(channels, stride, norm):
    return nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, stride, 1, bias=False), norm(channels))


@register_method("alternate", evaluations=2, source="a test")
def alternate(sizes):
    return darts1(sizes.alpha, sizes.beta, sizes.update_x, sizes.update_y)


@register_mixing("sigmoids", method="alternate")
def sigmoids(space, alphas, batch):
    return Mixing([torch.sigmoid(logits) for logits in alphas])


@register_source("brightness", place="FILE", what="dark and light images, as many as FILE says")
def read_brightness(request):
    count = int(request.place.read_text())
    labels = torch.arange(count) % 2
    pixels = (60 + 120 * labels)[:, None, None, None] + torch.arange(64).view(8, 8) % 9
    images = Images(pixels.expand(count, 3, 8, 8).to(torch.uint8), labels)
    return Loaded(images, images, ("dark", "light"))


@register_rule("second", needs_supernet=True)
def second(space, weights, trained, config):
    \"\"\"The second strongest operation of every edge into a node from an input.\"\"\"
    cells = {
        name: Cell(tuple((row.ranked(("none",))[1], *row.edge) for row in rows if row.edge[0] < 2), space.concat)
        for name, rows in weights.cells.items()
    }
    return space.genotype(cells), {"held_out": len(trained.held_out), "seed": config.seed}


@register_metric("edges_found", title="edges of the derived cell", unit="edges")
def edges_found(end):
    return float(len(end.genotype.cells[end.space.cells[0]].edges))


@register_block("widen")
def widen(inputs, outputs, stride):
    return nn.Conv2d(inputs, outputs, 1, stride)


def pyramid_layout(widths, channels, layers):
    parts = [NetworkPart("stem", "stem", channels, channels, 1, ())]
    for i in range(layers):
        name, stride = ("down", 2) if i % 2 else ("flat", 1)
        parts.append(NetworkPart("widen", "block", 2 * channels, 2 * channels, 1, (len(parts) - 1,)))
        parts.append(NetworkPart(name, "cell", channels, channels * widths[name], stride, (len(parts) - 1,)))
    return parts


register_skeleton(
    Skeleton("pyramid", ("flat", "down"), inputs=1, layout=pyramid_layout, published_sizes=(4, 3), layers_unit="levels")
)
"""
SPACE = """
name: mine
skeleton: darts
nodes: 2
operations: [none, skip_connect, plain_conv]
derivation: {rule: top_edges, edges_per_node: 2, exclude: [none]}
"""
PYRAMID = """
name: pyramid
skeleton: pyramid
nodes: 2
operations: [none, skip_connect, max_pool_3x3, sep_conv_3x3]
derivation: {rule: top_edges, edges_per_node: 1, exclude: [none]}
"""
TINY = """
space: {space}
search: {{channels: 2, layers: 3, epochs: 1, steps_per_epoch: 2, batch_size: 4, augment: {{crop: 1}}}}
retrain: {{channels: 2, layers: 3, epochs: 1, steps_per_epoch: 2, batch_size: 8, auxiliary: false, drop_path: 0.0}}
logging: {{tensorboard: false}}
"""


@pytest.fixture
def call(tmp_path, capsys, monkeypatch, registrations_forgotten):
    """A function that runs a command with --import pieces_of_mine.py and returns its JSON."""
    (tmp_path / "pieces_of_mine.py").write_text(USERS_FILE)
    (tmp_path / "count.txt").write_text("60")
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "tiny.yaml").write_text(TINY.format(space=tmp_path / "space.yaml"))
    (tmp_path / "pyramid.yaml").write_text(PYRAMID)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*words):
        capsys.readouterr()
        with registrations_forgotten():
            code = main([*words, "--import", "pieces_of_mine.py", "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)

    return run


def test_what_is_registered_is_listed(call):
    assert "plain_conv" in {row["name"] for row in call("list", "operations")}
    assert "brightness:FILE" in {row["name"] for row in call("list", "sources")}
    assert {"space", "selection", "second"} <= {row["name"] for row in call("list", "rules")}
    assert {"moreau", "alternate", "sigmoids"} <= {row["name"] for row in call("list", "methods")}


def test_search_and_run_read_the_source(call):
    found = call("search", "--config", "tiny.yaml", "--data", "brightness:count.txt", "--output", "found")
    assert found["space"] == "mine"
    assert [row["edges_found"] for row in read_table(Path("found/metrics.csv"))] == ["4.0"]
    whole = call("run", "--config", "tiny.yaml", "--data", "brightness:count.txt", "--output", "whole")
    assert whole["search"]["digest"] == found["digest"]


def test_search_and_derive_use_the_rule(call):
    words = ("--config", "tiny.yaml", "--data", "brightness:count.txt")
    found = call("search", *words, "derive.rule=second", "--output", "found")
    assert found["derived_by"] == {"rule": "second", "held_out": 6, "seed": 0}
    assert found["before_rule"]["digest"] != found["digest"]
    assert {edge[1] for edge in found["genotype"]["cells"]["normal"]["edges"]} == {0, 1}
    again = call("derive", "found")
    assert again == {key: found[key] for key in ("genotype", "digest", "derived_by", "before_rule")}
    plain = call("derive", "found", "--rule", "space")
    assert plain["genotype"] == found["before_rule"]["genotype"] and "before_rule" not in plain


def test_a_skeleton_goes_all_the_way(call, tmp_path):
    words = ("--config", "tiny.yaml", "--data", "brightness:count.txt", "space=pyramid.yaml")
    result = call("run", *words, "--output", "whole")
    genotype = result["search"]["genotype"]
    assert genotype["skeleton"] == "pyramid" and set(genotype["cells"]) == {"flat", "down"}
    assert result["retrain"]["digest"] == result["search"]["digest"]
    assert (tmp_path / "whole" / "report.html").stat().st_size > 10_000
    for name in ("genotype.svg", "genotype.png"):
        assert (tmp_path / "whole" / "search" / name).stat().st_size > 1000
    assert call("derive", "whole")["genotype"] == genotype
    assert call("derive", "whole", "--rule", "selection")["before_rule"]["genotype"] == genotype
    assert call("evaluate", "whole")["accuracy"] == result["retrain"]["test_accuracy"]
    assert call("show", "whole")["cells"] == genotype["cells"]
    exported = call("export", "whole", "--format", "torch-export", "--output", "exported")
    assert exported["digest"] == result["search"]["digest"]


def test_solve_reads_the_source(call):
    words = ("--data", "brightness:count.txt", "--corrupt", "0.5", "--n", "20", "--steps", "2", "--output", "cleaned")
    assert call("solve", "hyper-cleaning", *words)["n"] == 20


@pytest.mark.slow
def test_the_processes_of_compare_and_plan_import_the_file(call, monkeypatch):
    words = ("--config", "tiny.yaml", "--data", "brightness:count.txt")
    rows = call("compare", *words, "--methods", "sigmoids", "derive.rule=second", "--output", "compared")["rows"]
    assert [(row["method"], row["rule"]) for row in rows] == [("sigmoids", None), ("sigmoids", "second")]
    assert all(row["retrained_accuracy"] is not None for row in rows)
    monkeypatch.setattr(plan, "SECONDS", 0.0)
    assert call("plan", *words)["search"]["hours"] is not None
