"""Commands that work for long show that they do; --quiet prints the result and errors alone."""

import json
import os
import subprocess
import sys
import threading
import traceback
from contextlib import contextmanager

import numpy as np
import pytest
from torch.overrides import TorchFunctionMode

from nas_moreau.architecture import load_genotype
from nas_moreau.cli import entry as cli
from nas_moreau.cli import listing
from nas_moreau.cli.output import silence
from nas_moreau.compare import child_runs
from nas_moreau.errors import InputError
from nas_moreau.runs import heartbeat as module
from nas_moreau.runs import progress
from nas_moreau.runs.heartbeat import Heartbeat
from nas_moreau.training.signals import StopRequest


def test_commands_that_load_show_it(capsys, monkeypatch):
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.0)
    shown = threading.Event()
    monkeypatch.setattr(Heartbeat, "beat", lambda self: shown.set())
    monkeypatch.setitem(listing.LISTS, "spaces", lambda: [{"name": str(shown.wait(20))}])
    assert cli.main(["list", "spaces", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "True"}]


def test_the_commands_of_a_comparison_are_quiet_too(tmp_path, capfd):
    """What they print goes to their logs."""
    log = tmp_path / "one.log"
    command = child_runs.Command("one", ["show", "no-such-cell"], log)
    for quiet in (False, True):
        with silence(quiet), StopRequest() as stop, pytest.raises(InputError):
            child_runs.run_all([iter([command])], 1, stop, str(tmp_path))
        assert ("no-such-cell" in capfd.readouterr().err) is not quiet
    assert "no-such-cell" in log.read_text()


def test_quiet_prints_the_result_and_errors_alone(capsys, tmp_path):
    command = ["show", "DARTS_V2", "--draw", str(tmp_path / "cell.svg")]
    assert cli.main(command) == 0
    loud = capsys.readouterr()
    assert loud.err and cli.main([*command, "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert quiet.out == loud.out and quiet.err == ""
    assert cli.main(["show", "no-such-thing", "-q"]) == 2
    assert "no-such-thing" in capsys.readouterr().err


def test_a_run_below_checkpoints_is_shown_by_its_name(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "checkpoints" / "first"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["show", "first"]) == 2
    (folder / "status.json").write_text("{}", encoding="utf-8")
    (folder / "genotype.json").write_text(load_genotype("DARTS_V2").to_json(), encoding="utf-8")
    assert cli.main(["show", "first"]) == 0
    assert load_genotype("DARTS_V2").digest() in capsys.readouterr().out


LOADING = """
import importlib.abc, os, sys, threading
from pathlib import Path
from nas_moreau.cli import entry
from nas_moreau.runs import heartbeat

class Torch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":  # it takes seconds: who waits for it must see a sign of life meanwhile
            os._exit(0 if shown.wait(20) else 1)

class Watched:
    def isatty(self): return False
    def flush(self): pass
    def write(self, text):
        if " ... " in text: shown.set()

shown = threading.Event()
heartbeat.FIRST_SECONDS, heartbeat.TICK_SECONDS = 0.0, 0.001
sys.meta_path.insert(0, Torch())
sys.stderr = Watched()
Path("mine.py").write_text("import torch")
for stage in ("search", "retrain"):
    Path(stage).mkdir(exist_ok=True)
    Path(stage, "status.json").write_text('{"stage": "%s", "state": "finished"}' % stage)
missed = []
for line in sys.argv[1:]:
    child = os.fork()
    if not child:
        os._exit(entry.main(line.split()) + 10)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        missed.append(line)
print(missed)
"""
LOAD_TORCH = [
    "run --preset smoke",
    "run --preset smoke --dry-run",
    "search --preset smoke",
    "search --import mine.py --module net",
    "derive search",
    "retrain DARTS_V2 --preset smoke",
    "evaluate retrain",
    "report search",
    "export retrain --format python",
    "predict retrain image.png",
    "compare --preset smoke --methods moreau,random",
    "solve sine",
    "solve hyper-cleaning",
    "bench",
    "check-hypergradient",
    "doctor",
    "check shapes",
    "list methods",
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_command_that_loads_torch_shows_a_sign_of_life_meanwhile(tmp_path):
    command = [sys.executable, "-c", LOADING, *LOAD_TORCH]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "[]\n", done.stderr


class Watch(TorchFunctionMode):
    """Notes what torch computes while no sign of life is open."""

    def __init__(self):
        self.open, self.calls, self.unseen = 0, 0, []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        self.calls += 1
        if not self.open:
            self.unseen.append("".join(traceback.format_stack(limit=30)[:-1]))
        return function(*arguments, **(keywords or {}))


TINY = (
    "space=toy search.channels=2 search.layers=3 search.epochs=1 search.steps_per_epoch=1 search.batch_size=8 "
    "search.augment.crop=1 retrain.channels=4 retrain.layers=3 retrain.epochs=1 retrain.steps_per_epoch=1 "
    "retrain.batch_size=8 retrain.auxiliary=false data.image_size=8 logging.tensorboard=false"
)


@pytest.fixture
def watch(monkeypatch):
    """Returns a watch that counts the signs of life that are open."""
    watch, on_top = Watch(), module.on_top

    @contextmanager
    def counted(shown):
        with on_top(shown):
            watch.open += 1
            try:
                yield
            finally:
                watch.open -= 1

    monkeypatch.setattr(module, "on_top", counted)
    monkeypatch.setattr(progress, "on_top", counted)
    return watch


@pytest.mark.parametrize(
    "line",
    [f"run --output run --data npz:tiny.npz {TINY}", "solve quadratic --n 3 --steps 20", "solve hyper-cleaning --n 20"],
    ids=["run", "quadratic", "hyper-cleaning"],
)
def test_nothing_is_computed_without_a_sign_of_life(line, watch, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 4
    np.savez("tiny.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    words = line.split() if "hyper" not in line else f"{line} --data npz:tiny.npz --corrupt 0.5 --steps 2".split()
    with watch:
        assert cli.main(words) == 0, capsys.readouterr().err
    assert watch.calls > 100 and not watch.unseen


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("plan --preset smoke", "diagnostics.plan.plan"),
        ("bench", "diagnostics.bench.benchmark"),
        ("check-hypergradient", "diagnostics.check_hypergradient.check_hypergradient"),
        ("compare --preset smoke --methods moreau,random", "compare.protocol.compare"),
        ("doctor", "diagnostics.doctor.examine"),
        ("solve few-shot --data omniglot:empty", "problems.tasks.solve_on_data"),
    ],
)
def test_the_work_of_a_command_is_done_under_a_sign_of_life(line, place, watch, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    seen = []

    def work(*given, **keywords):
        seen.append(watch.open)
        raise InputError("Far enough.", "Stop here.")

    monkeypatch.setattr(f"nas_moreau.{place}", work)
    assert cli.main(line.split()) == 2
    assert seen == [1]
