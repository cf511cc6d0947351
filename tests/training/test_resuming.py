"""What is hard to resume: a signal during an evaluation, a point of TensorBoard shown twice, files of another run."""

import functools
import json
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.errors import InputError
from nas_moreau.pipeline import evaluate_run
from nas_moreau.runs import Monitor, load_checkpoint, save_checkpoint
from nas_moreau.runs.tables import read_table
from nas_moreau.search import epoch as search_epoch
from nas_moreau.search.stage import search
from nas_moreau.training import evaluate
from nas_moreau.training import retrain as retrain_stage
from nas_moreau.training.loop import Hook
from nas_moreau.training.retrain import retrain
from nas_moreau.training.signals import Interrupted

CELL = published_cell("DARTS_V2")
SETTINGS = ["retrain.epochs=3", "retrain.augment.cutout=0", "retrain.evaluate_every=1", "logging.every_steps=1"]


@pytest.fixture
def config(tiny_config):
    return lambda *overrides: tiny_config(*SETTINGS, *overrides)


STAGES = {
    "search": search,
    "retrain": lambda config, folder, **options: retrain(config, CELL, folder, **options),
}


def left_behind(folder):
    """What must not differ between two runs: tensors, the table without its clock, all that TensorBoard shows."""
    payload = load_checkpoint(folder / "checkpoints")[0]
    tensors = [t.numpy().tobytes() for key in ("x", "y", "buffers", "model") for t in flat(payload.get(key, []))]
    table = [{k: v for k, v in row.items() if k != "wall_seconds"} for row in read_table(folder / "metrics.csv")]
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    tags = [tag for tag in board.Tags()["scalars"] if tag != "step/seconds" and not tag.startswith("resources/")]
    points = {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in tags}
    pictures = {tag: [(e.step, e.encoded_image_string) for e in board.Images(tag)] for tag in board.Tags()["images"]}
    return tensors, table, points, pictures


def flat(value):
    return value.values() if isinstance(value, dict) else value


@pytest.fixture(scope="module")
def undisturbed(tiny_config, tiny_data, tmp_path_factory):
    """Returns a function from a stage and overrides to what it leaves behind when nothing happens; each is run once."""

    @functools.cache
    def whole(stage, *overrides):
        folder = tmp_path_factory.mktemp("whole") / "run"
        STAGES[stage](tiny_config(*SETTINGS, *overrides), folder, data=tiny_data)
        return left_behind(folder)

    return whole


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("step", [2, 6])
def test_a_signal_during_an_evaluation_ends_it_and_loses_nothing(
    stage, step, tmp_path, monkeypatch, config, tiny_data, undisturbed
):
    run, whole = STAGES[stage], undisturbed(stage)
    original, jobs = evaluate.evaluate_model, []

    def signalled(*arguments, **options):
        if jobs[0].counters.step == step:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        for module in (search_epoch, retrain_stage):
            patch.setattr(module, "evaluate_model", signalled)
        with pytest.raises(Interrupted, match="SIGTERM"):
            run(config(), tmp_path / "parts", data=tiny_data, hooks=[Hook(on_start=jobs.append)])
    assert json.loads((tmp_path / "parts" / "status.json").read_text())["step"] == step
    counters = load_checkpoint(tmp_path / "parts" / "checkpoints")[0]["counters"]
    assert counters["step"] == step and counters["epochs"] == step // 2 - 1
    run(config(), tmp_path / "parts", resume=True, data=tiny_data)
    assert left_behind(tmp_path / "parts") == whole


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("where", ["flush", "epoch", "hparams"])
@pytest.mark.parametrize("step", [3, 6])
def test_a_death_anywhere_around_a_save_leaves_no_trace(
    stage, where, step, tmp_path, monkeypatch, config, tiny_data, undisturbed
):
    key = "checkpoint.every_steps=1"
    run, often, whole = STAGES[stage], config(key), undisturbed(stage, key)
    original, jobs = getattr(Monitor, where), []

    class Killed(BaseException):
        pass

    def die(self, *arguments, **named):
        original(self, *arguments, **named)
        if jobs and jobs[0].counters.step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, where, die)
        try:
            run(often, tmp_path / "parts", data=tiny_data, hooks=[Hook(on_start=jobs.append)])
        except Killed:
            patch.undo()
            run(often, tmp_path / "parts", resume=True, data=tiny_data)
    assert left_behind(tmp_path / "parts") == whole


@pytest.mark.parametrize(
    "change, match",
    [
        ({"digests": {"configuration": "0" * 16}}, "another configuration"),
        ({"digests": {"space": "0" * 16}}, "another space"),
        ({"stage": "retrain"}, "is of a retrain"),
        ({"x": 3}, "does not fit this run"),
        ({"counters": {"step": None}}, "does not fit this run"),
        ({"counters": {"steps": 2}}, "does not fit this run"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_by_name(change, match, tmp_path, config, tiny_data, unfinish):
    search(config("search.epochs=1"), tmp_path / "a", data=tiny_data)
    payload = load_checkpoint(tmp_path / "a" / "checkpoints")[0]
    if "digests" in change:
        change = {"digests": payload["digests"] | change["digests"]}
    save_checkpoint(tmp_path / "a" / "checkpoints", payload | change)
    unfinish(tmp_path / "a")
    with pytest.raises(InputError, match=match):
        search(config("search.epochs=1"), tmp_path / "a", resume=True, data=tiny_data)


def test_falling_back_to_the_previous_checkpoint_is_said(tmp_path, capsys, config, tiny_data, unfinish):
    search(config("search.epochs=1"), tmp_path / "a", data=tiny_data)
    search(config("search.epochs=2"), tmp_path / "a", data=tiny_data, resume=True)
    (tmp_path / "a" / "checkpoints" / "last.pt").write_bytes(b"")
    unfinish(tmp_path / "a")
    capsys.readouterr()
    search(config("search.epochs=2"), tmp_path / "a", resume=True, data=tiny_data)
    said = "search: resumed at step 2; previous.pt is used because last.pt is cut off"
    assert said in capsys.readouterr().err and said in (tmp_path / "a" / "log.txt").read_text()


def test_a_search_folder_without_a_checkpoint_cannot_be_evaluated(tmp_path, config, tiny_data):
    search(config("search.epochs=1"), tmp_path / "a", data=tiny_data)
    (tmp_path / "a" / "checkpoints" / "last.pt").unlink()
    with pytest.raises(InputError, match="no checkpoint yet"):
        evaluate_run(tmp_path / "a", config())
