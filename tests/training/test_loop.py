"""The training loop's hooks: when they are called, what they may change, and what an exception of theirs does."""

import json

import pytest

from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.runs.tables import read_table
from nas_moreau.search.stage import search
from nas_moreau.training.loop import Hook
from nas_moreau.training.retrain import retrain

CELL = published_cell("DARTS_V2")
STAGES = {
    "search": search,
    "retrain": lambda config, folder, **options: retrain(config, CELL, folder, **options),
}
EVALUATIONS = {"search": ["held_out", "one_hot"], "retrain": ["test"]}


def recording(events):
    """A hook that records its calls with the number of steps done."""
    return Hook(
        on_start=lambda job: events.append(("start", job.counters.step)),
        before_step=lambda job: events.append(("before", job.counters.step)),
        on_step=lambda job, info: events.append(("step", job.counters.step)),
        on_evaluate=lambda job, name, samples, seconds: events.append((name, samples)),
        on_epoch=lambda job, row: events.append(("epoch", row["epoch"])),
    )


@pytest.fixture
def config(tiny_config):
    return tiny_config("search.epochs=2", "retrain.evaluate_every=1", "logging.tensorboard=false")


@pytest.mark.parametrize("stage", STAGES)
def test_hooks_are_called_in_order(stage, tmp_path, config, tiny_data):
    events = []
    STAGES[stage](config, tmp_path / "a", data=tiny_data, hooks=[recording(events), Hook()])
    count = {"search": 6, "retrain": 60}[stage]
    expected = [("start", 0)]
    for epoch in range(2):
        for step in (2 * epoch, 2 * epoch + 1):
            expected += [("before", step), ("step", step + 1)]
        expected += [*((name, count) for name in EVALUATIONS[stage]), ("epoch", epoch)]
    assert events == [*expected, ("derivation" if stage == "search" else "test", count)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_stage_starts_where_it_stopped(stage, tmp_path, config, tiny_data):
    class Stop(Exception):
        pass

    def stop(job, row):
        raise Stop

    with pytest.raises(Stop):
        STAGES[stage](config, tmp_path / "a", data=tiny_data, hooks=[Hook(on_epoch=stop)])
    assert json.loads((tmp_path / "a" / "status.json").read_text())["state"] == "failed"
    events = []
    STAGES[stage](config, tmp_path / "a", resume=True, data=tiny_data, hooks=[recording(events)])
    assert events[:2] == [("start", 2), ("before", 2)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_hook_can_make_a_step_the_last_one(stage, tmp_path, config, tiny_data):
    def last(job, info):
        if job.counters.step == 3:
            job.total_steps = 3

    STAGES[stage](config, tmp_path / "a", data=tiny_data, hooks=[Hook(on_step=last)])
    rows = read_table(tmp_path / "a" / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert json.loads((tmp_path / "a" / "status.json").read_text())["step"] == 3
    losses = [float(row["lower_loss" if stage == "search" else "train_loss"]) for row in rows]
    assert all(0.5 < loss < 3 for loss in losses)  # the mean over one step, not over two


def test_the_info_of_a_step_is_that_of_the_method(tmp_path, config, tiny_data):
    seen = []
    search(config, tmp_path / "a", data=tiny_data, hooks=[Hook(on_step=lambda job, info: seen.append(info))])
    assert len(seen) == 4 and all(info.f.isfinite() and info.c > 0 for info in seen)


def test_a_hook_of_an_unknown_event_is_refused():
    with pytest.raises(TypeError):
        Hook(on_steps=lambda job: None)
