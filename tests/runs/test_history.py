"""The reader of run folders: what stage, how far, what it found; missing, foreign and damaged files."""

from __future__ import annotations

import json

import pytest

from nas_moreau.architecture import AlphaTable, derive, load_space
from nas_moreau.errors import InputError
from nas_moreau.runs.history import Stability, Stage, find_search, find_stage, network_sizes, open_stage, read_run
from nas_moreau.runs.lock import Lock
from nas_moreau.runs.tables import csv_text

SPACE = load_space("toy")


def table_of(strongest: int) -> AlphaTable:
    logits = [[3.0 * (k == strongest) for k in range(len(SPACE.operations))]] * len(SPACE.edges)
    return AlphaTable.from_logits(SPACE, dict.fromkeys(SPACE.cells, logits))


def write_search(folder, state="finished", tables=(), result=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"stage": "search", "state": state}))
    (folder / "config.yaml").write_text("space: toy\nseed: 3\nretrain: {channels: 5, layers: 7, auxiliary: true}\n")
    rows = [row for epoch, table in enumerate(tables) for row in table.to_rows(epoch)]
    if rows:
        (folder / "alphas.csv").write_text(csv_text([rows[0], *(row.values() for row in rows)]))
        (folder / "genotype.json").write_text(derive(SPACE, tables[-1]).to_json())
        numbers = [["epoch", "held_out_accuracy", "wall_seconds"], *([i, 0.5, 2.0 * i] for i in range(len(tables)))]
        (folder / "metrics.csv").write_text(csv_text(numbers))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))


def test_a_search_in_progress(tmp_path):
    tables = [table_of(1), table_of(3)]
    write_search(tmp_path, "running", tables)
    assert read_run(tmp_path).search.state == "killed", "no process holds its lock"
    lock = Lock.take(tmp_path)
    try:
        search = read_run(tmp_path).search
        assert (search.name, search.state, search.finished, search.verdict) == ("search", "running", False, None)
    finally:
        lock.release()
    assert search.alphas == dict(enumerate(tables)) and search.final_alphas == tables[-1]
    assert search.genotype == derive(SPACE, tables[-1]) and search.space == SPACE
    assert search.metrics["wall_seconds"] == [0, 2] and search.seconds == 2


def test_the_weights_of_a_result_are_those_that_its_cell_was_derived_from(tmp_path):
    """With search.guard=best that is not the last epoch's."""
    tables = [table_of(1), table_of(3)]
    health = {"verdict": "healthy"}
    write_search(tmp_path, "finished", tables, {"held_out_accuracy": 0.25, "health": health, **tables[0].to_dict()})
    search = find_search(tmp_path)
    assert search.final_alphas == tables[0] and search.finished
    assert (search.verdict, search.accuracy) == ("healthy", 0.25)


def test_a_whole_run_is_the_parent_of_its_stages(tmp_path):
    write_search(tmp_path / "search", result={"held_out_accuracy": 0.25, "health": {"verdict": "undecided"}})
    for folder, stage in ((tmp_path, "run"), (tmp_path / "retrain", "retrain")):
        folder.mkdir(exist_ok=True)
        (folder / "status.json").write_text(json.dumps({"stage": stage, "state": "running"}))
    (tmp_path / "retrain" / "result.json").write_text(json.dumps({"test_accuracy": 0.75}))
    run = read_run(tmp_path)
    assert [stage.name for stage in run.stages] == ["search", "retrain"] and run.parent.name == "run"
    assert run.test_accuracy == 0.75 and run.seed == 3
    whole = open_stage(tmp_path)
    assert (whole.accuracy, whole.verdict) == (0.75, "undecided")
    assert find_stage(tmp_path, "search").path == tmp_path / "search"
    assert find_stage(tmp_path, "run", "search").path == tmp_path
    assert find_stage(tmp_path / "retrain", "search", "retrain").path == tmp_path / "retrain"
    with pytest.raises(InputError, match="solve"):
        find_stage(tmp_path, "solve")


def test_what_is_no_run_is_refused_or_none(tmp_path):
    assert open_stage(tmp_path) is None and find_search(tmp_path) is None and find_search("DARTS_V2") is None
    assert find_search('{"version": 1}' * 1000) is None  # the text of a genotype is no possible path
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(InputError):
            read_run(path)
        with pytest.raises(InputError):
            find_stage(path, "search")


@pytest.mark.parametrize(
    ("file", "text", "attribute"),
    [
        ("result.json", "{", "result"),
        ("config.yaml", "[", "config"),
        ("alphas.csv", "epoch,cell\n0,normal\n", "alphas"),
        ("genotype.json", "[]", "genotype"),
    ],
)
def test_a_damaged_file_is_an_input_error_when_it_is_asked_for(tmp_path, file, text, attribute):
    write_search(tmp_path)
    (tmp_path / file).write_text(text)
    stage = Stage(tmp_path)
    assert stage.state == "finished"
    with pytest.raises(InputError):
        getattr(stage, attribute)


def test_a_space_that_is_gone_leaves_the_rest_readable(tmp_path):
    write_search(tmp_path, "running", [table_of(1)])
    (tmp_path / "config.yaml").write_text("space: gone.yaml\n")
    assert Stage(tmp_path).space is None and Stage(tmp_path).final_alphas == table_of(1)


def test_the_sizes_of_a_runs_network(tmp_path):
    write_search(tmp_path)
    genotype = derive(SPACE, table_of(1))
    assert network_sizes(genotype, tmp_path) == (5, 7, (3, 32, 32), None, True)
    (tmp_path / "data.json").write_text(json.dumps({"channels": 1, "image_size": [8, 9], "classes": ["a", "b"]}))
    assert network_sizes(genotype, tmp_path)[2:4] == ((1, 8, 9), 2)
    assert network_sizes(genotype, "DARTS_V2").layers == 20


def test_stability_counts_epochs_and_edges():
    tables = [table_of(1), table_of(1), table_of(3), table_of(3)]
    found = Stability.of(SPACE, tables).to_dict()
    assert (found["epochs"], found["epochs_unchanged"], found["window"]) == (4, 2, 4)
    assert found["edges_unchanged"] == 0 and Stability.of(SPACE, tables[2:]).to_dict()["edges_unchanged"] == 1
