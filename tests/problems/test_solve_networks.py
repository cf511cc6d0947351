"""hyper-cleaning and few-shot from the command line: files, resume to the byte, and what is refused."""

import csv
import io
import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nas_moreau.bilevel import moreau
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.cli import entry as cli
from nas_moreau.data import Data, Images
from nas_moreau.drawing.contact_sheet import contact_sheet
from nas_moreau.errors import InputError
from nas_moreau.problems import cleaning_job, few_shot_job, learn
from nas_moreau.problems.step_sizes import falling, tuned_step_sizes
from nas_moreau.problems.tasks import solve_on_data, solve_options
from nas_moreau.runs import Monitor, RunFolder, load_checkpoint
from nas_moreau.runs.tables import read_table

TINY = ["--data", "shapes", "--n", "40", "--steps", "6"]


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    from nas_moreau.data import generated_shapes

    monkeypatch.setattr(generated_shapes, "TRAIN_SHAPES", 240)
    monkeypatch.setattr(generated_shapes, "TEST_SHAPES", 60)
    for name, value in (("TEST_TASKS", 20), ("MEASURED_TASKS", 4), ("TEST_QUERIES", 3)):
        monkeypatch.setattr(few_shot_job, name, value)


def run(capsys, *words):
    code = cli.main(["solve", *words])
    return code, *capsys.readouterr()


@pytest.fixture
def small(tmp_path):
    """Words for images of 4x4 pixels, which are quick even where curvatures are measured."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 80), ("test", 20)):
        labels = np.arange(count) % 4
        arrays[f"x_{part}"] = (generator.integers(0, 90, (count, 4, 4, 1)) + 50 * labels[:, None, None, None]).astype(
            "u1"
        )
        arrays[f"y_{part}"] = labels
    np.savez(tmp_path / "small.npz", **arrays)
    return ["--data", f"npz:{tmp_path}/small.npz", "--corrupt", "0.5", "--n", "40", "--steps", "6"]


def rows_of(folder):
    return [{k: v for k, v in row.items() if k != "wall_seconds"} for row in read_table(folder / "metrics.csv")]


def test_hyper_cleaning_writes_lists_and_picture(tmp_path, capsys):
    folder = tmp_path / "run"
    code, out, _ = run(capsys, "hyper-cleaning", *TINY, "--output", str(folder), "--json")
    result = json.loads(out)
    assert code == 0 and result == json.loads((folder / "result.json").read_text())
    contract = "task n method x y error residual steps seconds peak_memory_bytes message"
    assert {*contract.split(), "accuracy", "f1"} <= set(result)
    assert result["n"] == 40 and result["steps"] == 6 and result["x"]["entries"] == 40 and result["error"] is None
    suspects = list(csv.DictReader(io.StringIO((folder / "suspects.csv").read_text())))
    weights = [float(row["weight"]) for row in suspects]
    assert len(suspects) == 40 and weights == sorted(weights)
    assert sum(row["corrupted"] == "1" for row in suspects) == 20
    kept = list(csv.DictReader(io.StringIO((folder / "cleaned.csv").read_text())))
    assert [int(row["index"]) for row in kept] == sorted(int(r["index"]) for r in suspects if r["keep"] == "1")
    assert all((row["keep"] == "1") == (float(row["weight"]) >= 0.5) for row in suspects)
    hits = sum(row["corrupted"] == "1" and row["keep"] == "0" for row in suspects)
    assert result["f1"] == pytest.approx(2 * hits / (20 + 40 - len(kept)))
    with Image.open(folder / "suspects.png") as picture:
        assert picture.width > 600 and picture.height > 200
    assert (folder / "tensorboard").is_dir() and len(result["curve"]) == 6


def test_own_labels_in_a_folder_are_ranked_by_file(tmp_path, capsys):
    for part, count in (("train", 40), ("test", 4)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (4, 4), (40 + 120 * label + i,) * 3)
                image.save(tmp_path / "photos" / part / name / f"{i}.png")
    (tmp_path / "photos/train/light/3.png").rename(tmp_path / "photos/train/dark/wrong.png")
    words = ["--data", f"folder:{tmp_path}/photos", "--corrupt", "0", "--steps", "60"]
    code, out, err = run(capsys, "hyper-cleaning", *words, "--output", str(tmp_path / "run"))
    assert code == 0 and "test accuracy" in out and "F1" not in out and "run folder" in err
    suspects = list(csv.DictReader(io.StringIO((tmp_path / "run/suspects.csv").read_text())))
    assert len(suspects) == 80 and suspects[0]["file"].endswith("dark/wrong.png")
    assert suspects[0]["label"] == "dark" and suspects[0]["predicted"] == "light"


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("hyper-cleaning", "moreau"),
        ("hyper-cleaning", "f2sa"),
        ("hyper-cleaning", "moreau-auto"),
        ("few-shot", "moreau"),
        ("few-shot", "moreau-auto"),
    ],
)
def test_resume_is_exact(tmp_path, capsys, monkeypatch, small, task, method, stop_at):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = small if task == "hyper-cleaning" else ["--data", "shapes", "--ways", "2", "--steps", "12"]
    arguments = [task, *words, "--method", method]
    assert run(capsys, *arguments, "--output", str(whole), "--json")[0] == 0
    original = learn.run_in
    with monkeypatch.context() as patch:
        patch.setattr(learn, "run_in", lambda job, folder, hooks: original(job, folder, [stop_at(3)]))
        code, _, err = run(capsys, *arguments, "--output", str(broken))
    assert code == 143 and "--resume" in err
    # what the run was made with need not be said again
    code, _, _ = run(capsys, task, "--output", str(broken), "--resume", "--json")
    assert code == 0
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (whole, broken))
    for key in ("x", "y", "accuracy", "steps", "evaluations"):
        assert first[key] == second[key]
    assert rows_of(whole) == rows_of(broken)
    for name in ("suspects.csv", "cleaned.csv"):
        if task == "hyper-cleaning":
            assert (whole / name).read_bytes() == (broken / name).read_bytes()
    # a finished run is not run again
    assert json.loads(run(capsys, task, "--output", str(broken), "--resume", "--json")[1]) == second


@pytest.mark.parametrize("place", ["Monitor.hparams", "RunFolder.finish", "Monitor.epoch"])
def test_a_run_that_dies_near_its_end_shows_every_point_once(place, tmp_path, capsys, monkeypatch, small):
    class Dead(BaseException):
        pass

    def dying(*arguments, **keywords):
        if place != "RunFolder.finish":
            original(*arguments, **keywords)
        if place != "Monitor.epoch" or arguments[1]["epoch"] == 2:
            raise Dead

    owner, name = {"Monitor": Monitor, "RunFolder": RunFolder}[place.split(".")[0]], place.split(".")[1]
    original = getattr(owner, name)
    arguments = ["hyper-cleaning", *small, "--output", str(tmp_path / "a")]
    with monkeypatch.context() as patch, pytest.raises(Dead):
        patch.setattr(owner, name, dying)
        run(capsys, *arguments)
    assert run(capsys, *arguments, "--resume")[0] == 0
    board = EventAccumulator(str(tmp_path / "a" / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    tags = board.Tags()["scalars"]
    points = {tag: [event.step for event in board.Scalars(tag)] for tag in tags}
    assert "final/accuracy" in tags and "accuracy/accuracy" in tags
    assert all(steps == sorted(set(steps)) for steps in points.values()), points
    assert points["accuracy/accuracy"] == [int(row["step"]) for row in read_table(tmp_path / "a" / "metrics.csv")]


def test_the_table_of_few_shot(tmp_path, capsys):
    words = ["--data", "shapes", "--ways", "3", "--shots", "2", "--steps", "5"]
    code, out, _ = run(capsys, "few-shot", *words, "--output", str(tmp_path / "run"))
    assert code == 0 and "+-" in out
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["test_tasks"] == 20 and 0 < result["interval"] < 0.2 and 0.1 < result["accuracy"] < 1


def test_a_class_of_one_image_is_passed_over():
    labels = torch.arange(8).repeat_interleave(12)[:-11]  # seven classes of 12 images, one of a single one
    pixels = torch.randint(
        0, 255, (len(labels), 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    images = Images(pixels, labels)
    data = Data("rare", tuple("abcdefgh"), images, images.take(torch.arange(0)), (0.5,), (0.3,))
    for seed in range(4):  # the rare class is on either side
        config = solve_options("few-shot", {"ways": 2, "shots": 3, "steps": 5, "seed": seed}).model_dump()
        task = few_shot_job.few_shot_job(config, METHODS["moreau"], data, torch.device("cpu"))
        assert 0 <= task.measure(task.x, task.y)["accuracy"] <= 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["hyper-clean"], ["'hyper-clean'", "'hyper-cleaning'"]),
        (["hyper-cleaning", "--method", "bom"], ["'bom'", "'bome'"]),
        (["hyper-cleaning", "--ways", "5"], ["ways", "corrupt"]),
        (["few-shot", "--corrupt", "0.1"], ["corrupt", "ways"]),
        (["few-shot", "--ways", "9"], ["divided"]),
        (["few-shot", "--ways", "2", "--shots", "500"], ["fewer"]),
        (["hyper-cleaning", "--corrupt", "1.5"], ["corrupt", "1.5"]),
        (["hyper-cleaning", "--steps", "0"], ["steps", "0"]),
        (["hyper-cleaning", "--debias"], ["debias"]),
        (["hyper-cleaning", "--n", "40", "--corrupt", "0"], ["corrupt", "n"]),
        (["sine", "--data", "shapes"], ["data", "sine"]),
        (["sine", "--resume"], ["--resume", "sine"]),
    ],
)
def test_refusals_leave_nothing_behind(tmp_path, capsys, words, named):
    folder = tmp_path / "run"
    words = words if words[0] == "sine" else [*words, "--output", str(folder)]
    code, _, err = run(capsys, *words)
    assert code == 2 and all(text in err for text in named) and not folder.exists()


def test_a_number_that_is_not_finite_ends_the_run(tmp_path, capsys, monkeypatch):
    wild = METHODS["moreau"]._replace(build=lambda sizes: moreau(1e30, 1e30, 1e30, 1.0, 1.0))
    monkeypatch.setitem(METHODS, "moreau", wild)
    code, _, err = run(capsys, "hyper-cleaning", *TINY, "--output", str(tmp_path / "run"))
    assert code == 3 and "not finite" in err
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("signalled", [False, True])
def test_nan_between_two_looks_is_seen_in_its_step_and_never_saved(tmp_path, capsys, monkeypatch, small, signalled):
    """With 6 steps there is a look after every step, so the looks are put further apart."""
    monkeypatch.setattr(cleaning_job, "MEASUREMENTS", 1)
    info, poisoned = METHODS["moreau"], []
    made = info.build(tuned_step_sizes("hyper-cleaning", 6, info))

    def step(problem, x, y, state, *batches):
        x, y, state, info = made.step(problem, x, y, state, *batches)
        poisoned.append(1)
        if len(poisoned) == 3:
            y = [y[0] * float("nan"), *y[1:]]
            if signalled:
                signal.raise_signal(signal.SIGTERM)
        return x, y, state, info

    monkeypatch.setitem(METHODS, "moreau", info._replace(build=lambda sizes: made._replace(step=step)))
    code, _, err = run(capsys, "hyper-cleaning", *small, "--output", str(tmp_path / "run"))
    assert "at step 3" in err and len(poisoned) == 3 and "y" in err
    assert code == 3
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"
    loaded = load_checkpoint(tmp_path / "run/checkpoints")
    assert loaded is None or all(tensor.isfinite().all() for tensor in loaded[0]["y"])


def test_equal_budgets_by_default():
    found = {name: solve_options("hyper-cleaning", {"method": name}).steps for name in METHODS}
    for name, steps in found.items():
        each = METHODS[name].count(tuned_step_sizes("hyper-cleaning", steps, METHODS[name]))
        assert steps * each <= 600 < (steps + 1) * each


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path):
    options = {"n": 30, "steps": 2, "corrupt": 0.2}
    first = solve_on_data("hyper-cleaning", options, tmp_path / "run")
    with pytest.raises(InputError, match="run"):
        solve_on_data("hyper-cleaning", options, tmp_path / "run")
    with pytest.raises(InputError, match=r"n .*30.*20"):
        solve_on_data("hyper-cleaning", {"n": 20}, tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run/result.json").read_text()) == first


def test_contact_sheet_of_grey_and_colour():
    for channels in (1, 3):
        data = contact_sheet(torch.full((7, channels, 8, 8), 200, dtype=torch.uint8), ["a\nb"] * 7, columns=3)
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.convert("RGB").getpixel((20, 20)) == (200, 200, 200)
    with pytest.raises(ValueError, match="caption"):
        contact_sheet(torch.zeros((1, 1, 2, 2), dtype=torch.uint8), [])


def test_a_falling_step_size_ends_at_a_fiftieth():
    assert [falling(2.0, 10)(k) for k in (0, 5, 10, 20)] == [2.0, 1.0, 0.04, 0.04]


def test_the_wait_for_a_device_counts_among_the_seconds_of_the_steps(tmp_path, make_data, monkeypatch):
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: now[0] / 2)
    read = learn.FiniteGuard.read

    def slow(self, *values):
        now[0] += 8.0
        return read(self, *values)

    monkeypatch.setattr(learn, "time", clock)
    monkeypatch.setattr(learn.FiniteGuard, "read", slow)
    monkeypatch.setattr(learn.FiniteGuard, "after", lambda self, step, terms, values, new, old: new)
    found = solve_on_data("hyper-cleaning", {"steps": 3, "device": "cpu"}, tmp_path / "run", data=make_data(30))
    # a measurement after each of the three steps
    assert [row["seconds"] for row in found["curve"]] == [8.0, 16.0, 24.0]
