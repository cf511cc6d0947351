"""The verdict on a run: its rank among random cells by hand, and a next step for every state."""

import json

import pytest

from nas_moreau.report.verdict import against_random, next_step, outcome
from nas_moreau.runs.history import read_run

HEALTHY = {"verdict": "healthy", "idle_share": 0.0, "largest_weight": 0.9, "uniform_weight": 0.25, "trained": False}
CELLS = {"normal": {"edges": 4, "idle": {}, "judged": True}}


def stage(folder, name, result, state="finished", config=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"stage": name, "state": state}))
    (folder / "config.yaml").write_text(json.dumps(config or {"search": {"epochs": 3}}))
    if result:
        (folder / "result.json").write_text(json.dumps(result))


def whole(folder, accuracy, others=(), **health):
    found = HEALTHY | {"cells": CELLS} | health
    stage(folder, "run", None)
    stage(folder / "search", "search", {"method": "moreau", "health": found, "held_out_accuracy": 0.5})
    stage(folder / "retrain", "retrain", {"test_accuracy": accuracy})
    for i, value in enumerate(others):
        stage(folder / "random" / f"{i:03}", "retrain", {"test_accuracy": value})
    return read_run(folder)


@pytest.mark.parametrize(
    ("others", "better", "p"),
    [([0.5, 0.7, 0.9], "2 of 3", "p 0.500"), ([0.1] * 20, "20 of 20", "p 0.048"), ([0.8], "0 of 1", "p 1.000")],
)
def test_the_rank_among_random_cells(tmp_path, others, better, p):
    run = whole(tmp_path, 0.8, others)
    text = against_random(run)
    assert better in text and p in text and "80.00 %" in text and text in outcome(run)
    assert ("at least 20" in text) == (len(others) < 20)


def test_without_random_cells_chance_is_not_known_and_the_next_step_is_to_ask(tmp_path):
    run = whole(tmp_path / "it's here", 0.8)
    assert against_random(run) is None and "not known" in outcome(run)
    command = next_step(run).command
    assert "--against-random" in command and "--resume" in command and "'\"'\"'" in command
    asked = whole(tmp_path / "b", 0.8, [0.5])
    assert "not known" not in outcome(asked) and next_step(asked).command.startswith("nas-moreau export")


@pytest.mark.parametrize(
    ("health", "command"),
    [
        ({"largest_weight": 0.26}, "derive.rule=trained"),
        ({"cells": {"normal": {"edges": 4, "idle": {"skip_connect": 3}, "judged": True}}}, "search.guard=best"),
    ],
)
def test_what_is_undecided_or_collapsed_has_a_cure(tmp_path, health, command):
    assert command in next_step(whole(tmp_path, 0.8, **health)).command


def test_short_training_chooses_an_undecided_cell_before_it_is_retrained(tmp_path):
    stage(tmp_path, "search", {"method": "moreau", "health": HEALTHY | {"cells": CELLS, "largest_weight": 0.26}})
    assert next_step(read_run(tmp_path)).command == f"nas-moreau derive {tmp_path} --rule trained --write"


def test_what_is_not_finished_goes_on(tmp_path):
    stage(tmp_path / "a", "search", None, "interrupted")
    assert next_step(read_run(tmp_path / "a")).command == f"nas-moreau search --output {tmp_path / 'a'} --resume"
    stage(tmp_path / "b", "run", None, "interrupted")
    stage(tmp_path / "b" / "search", "search", None, "interrupted")
    assert next_step(read_run(tmp_path / "b")).command == f"nas-moreau run --output {tmp_path / 'b'} --resume"
    stage(tmp_path / "c", "search", {"method": "moreau", "health": HEALTHY | {"cells": CELLS}})
    assert next_step(read_run(tmp_path / "c")).command == f"nas-moreau retrain {tmp_path / 'c'}"
    stage(tmp_path / "d", "retrain", {"test_accuracy": 0.5})
    assert "predict" in next_step(read_run(tmp_path / "d")).command
