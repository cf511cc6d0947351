"""The report: complete, self-contained, escaped, the same each time, whatever part of a run is there."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from nas_moreau.architecture.spaces.percentile import limit, percentile, why_no_percentile
from nas_moreau.architecture.spaces.space import load_space
from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.config import config_keys
from nas_moreau.errors import InputError
from nas_moreau.report.choices import choices
from nas_moreau.report.indicators import BAD, GOOD, WATCH, health, indicators
from nas_moreau.report.run import write_report
from nas_moreau.report.verdict import outcome
from nas_moreau.runs.history import read_run
from nas_moreau.search.collapse import assess

ROOT = Path(__file__).parents[2]
OPERATIONS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")
EDGES = [(a, b) for b in range(2, 4) for a in range(b)]  # of the first two nodes: charts take their time


def begin(folder: Path, stage: str, state: str = "finished", name: str = "shapes", space: str = "darts") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "seed": 7,
        "space": space,
        "data": {"name": name},
        "search": {"method": "moreau", "epochs": 4},
        "retrain": {"epochs": 5},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    environment = {
        "command": f"nas-moreau {stage} --seed 7 --output x",
        "python": "3.11.2",
        "threads": 1,
        "packages": {"torch": "2.9"},
        "accelerator": None,
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "status.json").write_text(json.dumps({"state": state, "stage": stage}))


def write_search(
    folder: Path, epochs: int = 4, finished: bool = True, cell: str = "DARTS_V1", gap: float = 0.01
) -> None:
    begin(folder, "search", "finished" if finished else "interrupted")
    names = [
        "epoch",
        "lower_loss",
        "upper_objective",
        "upper_loss",
        "upper_accuracy",
        "lower_accuracy",
        "held_out_loss",
        "held_out_accuracy",
        "f_theta",
        "gap",
        "c_k",
        "distance",
        "F_x_over_c",
        "phi_x_y",
        "phi_x_theta",
        "difference",
        "d_x",
        "d_y",
        "cosine",
        "alpha_entropy_normal",
        "alpha_entropy_reduce",
        "idle_lead_normal",
        "idle_lead_reduce",
        "weights_lr",
        "alphas_lr",
        "wall_seconds",
    ]
    lines = [",".join(names)]
    for epoch in range(epochs):
        values = {name: 1 / (1 + epoch) for name in names} | {
            "epoch": epoch,
            "gap": gap,
            "wall_seconds": 10.5 * (epoch + 1),
        }
        values |= {"held_out_accuracy": 0.5, "upper_accuracy": 0.6}
        lines.append(",".join(repr(values[name]) for name in names))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    genotype = published_cell(cell)
    rows = ["epoch,cell,edge,operation,weight"]
    for epoch in range(epochs):
        for name in genotype.cells:
            for a, b in EDGES:
                kept = [op for op, f, t in genotype.cells[name].edges if (f, t) == (a, b)]
                logits = [2.0 * (op in kept) * (epoch + 1) / epochs + (op == "none") for op in OPERATIONS]
                total = sum(map(math.exp, logits))
                rows += [f"{epoch},{name},{a}-{b},{op},{math.exp(z) / total!r}" for op, z in zip(OPERATIONS, logits)]
    (folder / "alphas.csv").write_text("\n".join(rows) + "\n")
    if epochs:
        (folder / "genotype.json").write_text(genotype.to_json())
    if finished:
        result = {
            "method": "moreau",
            "space": "darts",
            "digest": genotype.digest(),
            "seed": 7,
            "steps": 400,
            "wall_seconds": 42.0,
            "peak_memory_bytes": 3 << 30,
            "held_out_accuracy": 0.5123,
        }
        (folder / "result.json").write_text(json.dumps(result))


def write_retrain(
    folder: Path, epochs: int = 5, finished: bool = True, classes: tuple[str, ...] = ("cat", "dog")
) -> None:
    begin(folder, "retrain", "finished" if finished else "running")
    lines = ["epoch,train_loss,train_accuracy,test_loss,test_accuracy,lr,drop_path,wall_seconds"]
    for epoch in range(epochs):
        test = "0.7,0.6" if epoch % 2 else ","
        lines.append(f"{epoch},{1 / (1 + epoch)!r},0.5,{test},0.1,0.0,{20.0 * (epoch + 1)}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    (folder / "genotype.json").write_text(published_cell("DARTS_V1").to_json())
    if finished:
        n = len(classes)
        confusion = [[90 if i == j else 2 if (i, j) != (0, 1) else 9 for j in range(n)] for i in range(n)]
        evaluation = {"split": "test", "accuracy": 0.9, "loss": 0.3, "samples": 200, "classes": classes}
        (folder / "evaluation.json").write_text(json.dumps(evaluation | {"confusion": confusion}))
        result = {
            "digest": published_cell("DARTS_V1").digest(),
            "parameters": 3169414,
            "macs": 500987520,
            "epochs": epochs,
            "seed": 7,
            "wall_seconds": 100.0,
            "test_accuracy": 0.9321,
        }
        (folder / "result.json").write_text(json.dumps(result))


def write_run(folder: Path, **how) -> None:
    begin(folder, "run")
    write_search(folder / "search", **how)
    write_retrain(folder / "retrain")


class Checker(HTMLParser):
    """Collects ids, addresses and text of a page, and whether its tags are balanced."""

    EMPTY = ("meta", "br", "path", "use", "rect", "image", "stop")

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag, attributes):
        self.look(tag, attributes)

    def handle_starttag(self, tag, attributes):
        self.look(tag, attributes)
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def look(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            assert not name.startswith("on"), "an event handler"
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "action", "srcset"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def page_of(folder: Path) -> tuple[str, Checker]:
    path = write_report(folder)
    assert path == folder / "report.html" and path.stat().st_size < 3_000_000
    page = path.read_text(encoding="utf-8")
    checker = Checker(page)
    assert "script" not in checker.tags and "link" not in checker.tags and "iframe" not in checker.tags
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in checker.addresses)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http:" not in without_namespaces and "https:" not in without_namespaces and "@import" not in page
    assert len(set(checker.ids)) == len(checker.ids), "two elements with one id"
    targets = re.findall(r'(?:href="|url\()#([^")]+)', page)
    assert targets and set(targets) <= set(checker.ids), "a reference to nothing"
    return page, checker


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]+)">', page)


def test_a_whole_run_from_outcome_to_configuration(tmp_path):
    write_run(tmp_path / "first")
    page, checker = page_of(tmp_path / "first")
    assert sections(page) == [
        "cells",
        "search",
        "choices",
        "alphas",
        "retraining",
        "errors",
        "cost",
        "reproduce",
        "environment",
        "configuration",
    ]
    text = " ".join(checker.text)
    for expected in (
        "93.21 %",
        "3.17 M",
        "51.23 %",
        "500.99 M",
        "3.00 GiB",
        "nas-moreau run --seed 7 --output x",
        "9 times",
        "2 min 22 s",
        "torch 2.9",
    ):
        assert expected in text, expected
    assert page.count('<svg class="chart"') == 11 + 2 + 3 + 1  # no drop-path in this run
    assert "prefers-color-scheme:dark" in page and "@media print" in page


@pytest.mark.parametrize("cell", ["DARTS_V1", "NASNet"])
def test_the_page_has_the_percentile_or_why_there_is_none(tmp_path, cell):
    write_search(tmp_path, cell=cell)
    page, genotype = html.unescape(page_of(tmp_path)[0]), published_cell(cell)
    found = percentile(genotype)
    if found is None:
        assert why_no_percentile(genotype) in page and limit() not in page
    else:
        assert f"{found}. {limit()}" in page and str(found) in outcome(read_run(tmp_path))


def test_the_same_files_give_the_same_bytes(tmp_path):
    write_run(tmp_path / "run")
    one = write_report(tmp_path / "run").read_bytes()
    assert write_report(tmp_path / "run").read_bytes() == one


def test_a_search_alone_and_a_retraining_alone(tmp_path):
    write_search(tmp_path / "search-only")
    page, _ = page_of(tmp_path / "search-only")
    assert "retraining" not in sections(page) and "51.23 %" in outcome(read_run(tmp_path / "search-only"))
    write_retrain(tmp_path / "retrain-only")
    page, _ = page_of(tmp_path / "retrain-only")
    assert sections(page)[:3] == ["cells", "retraining", "errors"]
    assert "93.21 %" in outcome(read_run(tmp_path / "retrain-only"))


def test_a_random_cell_is_called_one(tmp_path):
    write_search(tmp_path, epochs=1)
    for name in ("metrics.csv", "alphas.csv"):
        (tmp_path / name).unlink()
    result = {"method": "random", "steps": 0, "wall_seconds": 0.0, "held_out_accuracy": None}
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "random" in outcome(read_run(tmp_path)) and '<svg class="chart"' not in page


def test_interrupted_runs_say_how_far_they_came(tmp_path):
    begin(tmp_path / "a", "run", "interrupted")
    write_search(tmp_path / "a" / "search", epochs=1, finished=False)
    page, _ = page_of(tmp_path / "a")
    assert "interrupted after 1 of 4 epochs" in page and "<code>--resume</code>" in page
    begin(tmp_path / "b", "run", "running")
    write_search(tmp_path / "b" / "search")
    write_retrain(tmp_path / "b" / "retrain", epochs=2, finished=False)
    assert "2 of 5 epochs" in outcome(read_run(tmp_path / "b"))
    assert "--resume" in write_report(tmp_path / "b").read_text()


@pytest.mark.parametrize(
    "left", [(), ("config.yaml",), ("metrics.csv",), ("alphas.csv",), ("genotype.json",), ("result.json",)]
)
def test_any_single_file_may_be_all_there_is_besides_the_state(tmp_path, left):
    write_run(tmp_path)
    for folder in (tmp_path / "search", tmp_path / "retrain"):
        for file in folder.iterdir():
            if file.name not in (*left, "status.json"):
                file.unlink()
    write_report(tmp_path)


def test_a_search_killed_before_its_first_epoch(tmp_path):
    write_search(tmp_path, epochs=0, finished=False)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "search" in sections(page) and '<svg class="chart"' not in page


def test_folders_without_a_run_and_damaged_files_are_input_errors(tmp_path):
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=re.escape(str(place))):
            write_report(place)
    write_search(tmp_path / "run")
    for name, text in (("result.json", "{"), ("alphas.csv", "epoch,cell\n0,normal\n"), ("genotype.json", "[]")):
        before = (tmp_path / "run" / name).read_text()
        (tmp_path / "run" / name).write_text(text)
        with pytest.raises(InputError):
            write_report(tmp_path / "run")
        (tmp_path / "run" / name).write_text(before)
    write_report(tmp_path / "run")


def test_hostile_names_stay_text_and_the_file_stays_small(tmp_path):
    evil = "<script>alert(1)</script>"
    folder = tmp_path / '<img src=x onerror="alert(2)">'
    classes = (evil, "$x^{_", "_hidden", "🧨" * 30, "n" * 300, "</svg>", *(f"class {i}" for i in range(94)))
    begin(folder, "run", name=evil)
    write_search(folder / "search")
    write_retrain(folder / "retrain", classes=classes)
    _, checker = page_of(folder)
    assert not {"img", "b", "script"} & checker.tags
    assert evil in "".join(checker.text)
    small = tmp_path / "small"
    write_retrain(small, classes=classes[:6])
    page_of(small)


def test_choices_leave_none_out_and_name_the_runner_up(tmp_path):
    write_search(tmp_path)
    found = {(c.cell, c.row.edge): c for c in choices(read_run(tmp_path).search)}
    assert len(found) == 10
    # DARTS_V1, normal: skip_connect from 0 to 3; logits 2 (skip), 1 (none), 0, 0
    choice = found["normal", (0, 3)]
    total = math.exp(2) + math.e + 2
    assert choice.strongest == "skip_connect" and choice.chosen == ("skip_connect",)
    assert choice.weight == pytest.approx(math.exp(2) / total) and choice.margin == pytest.approx(
        (math.exp(2) - 1) / total
    )
    # 2 to 3 is not in the cell; `none` has the largest weight there, but only the others can be strongest
    choice = found["normal", (2, 3)]
    assert choice.strongest == "max_pool_3x3" and choice.chosen == () and choice.margin == 0


def levels(folder: Path) -> dict[str, str]:
    return {indicator.name: indicator.level for indicator in indicators(read_run(folder).search)}


def write_cell(folder: Path, space: str, operations: list[str], largest: float = 0.6) -> None:
    """A search of one epoch that derived this NAS-Bench-201 cell, its operations strongest by `largest`."""
    names = load_space("nas_bench_201").operations
    edges = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    begin(folder, "search", "interrupted", space=space)
    rest = (1 - largest) / (len(names) - 1)
    rows = [
        f"0,cell,{a}-{b},{name},{largest if name == operation else rest}"
        for operation, (a, b) in zip(operations, edges)
        for name in names
    ]
    (folder / "alphas.csv").write_text("\n".join(["epoch,cell,edge,operation,weight", *rows]) + "\n")
    (folder / "metrics.csv").write_text("epoch,held_out_accuracy\n0,0.5\n")
    cell = {"edges": [[op, a, b] for op, (a, b) in zip(operations, edges)], "concat": [3]}
    genotype = {"version": 1, "space": "nas_bench_201" if space != "mine" else "mine", "cells": {"cell": cell}}
    (folder / "genotype.json").write_text(json.dumps(genotype))


NONES = ["none", "none", "nor_conv_3x3", "none", "nor_conv_1x1", "none"]


@pytest.mark.parametrize("recorded", [True, False])
def test_four_empty_edges_are_a_collapse_on_the_page_as_in_the_result(tmp_path, recorded):
    """Four `none` and two convolutions: no skip connection, and collapsed all the same."""
    write_cell(tmp_path, "nas_bench_201", NONES)
    search = read_run(tmp_path).search
    expected = assess(search.genotype, search.final_alphas)
    assert expected.verdict == "collapsed"
    if recorded:
        result = {"method": "darts1", "verdict": str(expected), "health": expected.to_dict()}
        (tmp_path / "result.json").write_text(json.dumps(result))
    assert health(read_run(tmp_path).search) == expected
    assert levels(tmp_path)["Idle edges of the cell"] == BAD
    page, _ = page_of(tmp_path)
    assert str(expected) in outcome(read_run(tmp_path)) and str(expected) in page
    assert re.search(r'<span class="badge bad">[^<]*collapsed', page)


@pytest.mark.parametrize("idle", range(7))
@pytest.mark.parametrize("largest", [0.25, 0.6])
def test_the_level_of_the_page_is_that_of_the_verdict(tmp_path, idle, largest):
    write_cell(tmp_path, "nas_bench_201", ["skip_connect"] * idle + ["nor_conv_3x3"] * (6 - idle), largest)
    state = health(read_run(tmp_path).search)
    found = levels(tmp_path)
    assert (found["Idle edges of the cell"] == BAD) == (state.verdict == "collapsed") == (idle > 3)
    assert ("Largest softmax weight" in found) == state.undecided == (largest == 0.25)
    assert (BAD in found.values()) == (state.verdict == "collapsed")


def test_a_space_of_the_user_whose_cells_may_hold_no_operation(tmp_path):
    """What may be chosen follows from the space's own file, not from its name."""
    space = tmp_path / "mine.yaml"
    text = (ROOT / "search_spaces" / "nas_bench_201.yaml").read_text()
    space.write_text(text.replace("name: nas_bench_201", "name: mine"))
    write_cell(tmp_path / "run", str(space), ["nor_conv_3x3"] * 6)
    table = (tmp_path / "run" / "alphas.csv").read_text()
    (tmp_path / "run" / "alphas.csv").write_text(table.replace("0-1,none,0.1", "0-1,none,0.7"))
    found = {choice.row.edge: choice for choice in choices(read_run(tmp_path / "run").search)}
    assert found[0, 1].strongest == "none" and found[0, 2].strongest == "nor_conv_3x3"
    # the same without `none` among the choices
    space.write_text(space.read_text().replace("{rule: all_edges}", "{rule: all_edges, exclude: [none]}"))
    found = {choice.row.edge: choice for choice in choices(read_run(tmp_path / "run").search)}
    assert found[0, 1].strongest == "nor_conv_3x3"


def test_what_is_not_good_says_what_to_do(tmp_path):
    """And what is good leaves it out; every key that an advice names can be set."""
    write_search(tmp_path / "good")
    write_search(tmp_path / "lagging", gap=-0.1)
    write_cell(tmp_path / "collapsed", "nas_bench_201", NONES, 0.25)
    known, levels_seen = config_keys(), set()
    for name in ("good", "lagging", "collapsed"):
        for sign in indicators(read_run(tmp_path / name).search):
            levels_seen.add(sign.level)
            assert (sign.advice in str(sign)) == (sign.level != GOOD)
            for key in re.findall(r"(?:search|derive)\.[a-z_.]*[a-z_]", sign.advice):
                assert key in known
    assert levels_seen == {GOOD, WATCH, BAD}


def test_indicators_see_a_lagging_theta(tmp_path):
    write_search(tmp_path / "good")
    assert set(levels(tmp_path / "good").values()) == {GOOD}
    write_search(tmp_path / "lagging", gap=-0.1)
    assert levels(tmp_path / "lagging")["Gap f(y) − f(θ)"] == WATCH


def test_where_short_training_chose_the_cell_its_losses_are_judged_and_not_the_alphas(tmp_path):
    def reason():
        page, _ = page_of(tmp_path)
        return re.search(r'<section id="choices">.*?<p>(.*?)</p>', page, re.DOTALL)[1]

    write_search(tmp_path)
    by_weights = reason()
    search = read_run(tmp_path).search
    state = dataclasses.replace(assess(search.genotype, search.final_alphas), trained=True)
    stability = {"epochs": 40, "epochs_unchanged": 1, "window": 5, "edges_unchanged": 0.75}
    for losses, level in (([None, None], WATCH), ([2.5], GOOD), ([1.25, 1.5], GOOD)):
        rounds = [{"steps": 64, "candidates": [{"digest": "a" * 16, "loss": loss, "accuracy": 0.5} for loss in losses]}]
        derived = {"derived_by": {"rule": "trained", "rounds": rounds}}
        result = {"method": "moreau", "health": state.to_dict(), "stability": stability} | derived
        (tmp_path / "result.json").write_text(json.dumps(result))
        found = levels(tmp_path)
        assert found["Choice by short training"] == level
        assert not {"Margin of the choices", "Entropy of the alphas", "Stability of the cell"} & set(found)
    page, _ = page_of(tmp_path)
    assert "1.250" in page and "1.500" in page
    assert reason() != by_weights  # edges that are left out need not have smaller weights then


def test_the_discretisation_gap_and_stability_are_judged(tmp_path):
    write_search(tmp_path)
    path = tmp_path / "metrics.csv"
    head, *rows = path.read_text().splitlines()
    for lost, level in ((0.02, GOOD), (0.3, WATCH)):
        lines = [f"{head},discretisation_gap", *(f"{row},{lost}" for row in rows)]
        path.write_text("\n".join(lines) + "\n")
        assert levels(tmp_path)["Discretisation gap"] == level
        path.write_text("\n".join([head, *rows]) + "\n")
    for unchanged, level in ((1, WATCH), (4, GOOD)):
        found = {"stability": {"epochs": 40, "epochs_unchanged": unchanged, "window": 5, "edges_unchanged": 0.75}}
        (tmp_path / "result.json").write_text(json.dumps(found))
        assert levels(tmp_path)["Stability of the cell"] == level
        page = write_report(tmp_path).read_text(encoding="utf-8")
        assert f"{unchanged} of 40 epochs" in page and "75 %" in page


def test_the_cost_has_evaluations_apart_and_the_worst_images_are_inside_the_page(tmp_path):
    import base64

    write_search(tmp_path / "search")
    write_retrain(tmp_path / "retrain")
    for stage, seconds in (("search", 5.0), ("retrain", 2.5)):
        (tmp_path / stage / "status.json").write_text(
            json.dumps({"state": "finished", "stage": stage, "evaluation_seconds": seconds})
        )
    picture = b"\x89PNG of some images"
    (tmp_path / "retrain" / "worst.png").write_bytes(picture)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert all(f"<td class=number>{text}</td>" in page for text in ("5.0 s", "2.5 s", "7.5 s"))
    assert f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"' in page
    (tmp_path / "retrain" / "worst.png").write_bytes(bytes(2 << 20))  # nothing that this package drew
    assert "<img " not in write_report(tmp_path).read_text(encoding="utf-8")
