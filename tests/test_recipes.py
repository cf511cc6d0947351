"""The recipes, command by command as they are written, on tiny images and with tiny settings."""

import gzip
import re
import shlex
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas_moreau.cli import entry as cli
from nas_moreau.compare import protocol as compare
from nas_moreau.diagnostics import plan, plan_probe

TEXT = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^## (Recipe \d[^\n]*)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
COMMAND = r"^    (nas-moreau (?:.*\\\n)*.*)$"
# TensorBoard waits for a key; the others have tests of their own and no smaller size
ONLY_READ = ("watch", "doctor", "check-hypergradient", "list")
STEPS = """
search.restarts=2 search.channels=2 search.layers={layers} search.epochs=2 search.steps_per_epoch=1 search.batch_size=4
search.image_size=8 search.augment.crop=1
derive.trained.candidates=2 derive.trained.steps=1 derive.trained.channels=2 derive.trained.batch_size=4
"""
RETRAINING = """
retrain.channels=2 retrain.layers={layers} retrain.epochs=1 retrain.steps_per_epoch=1 retrain.batch_size=4
retrain.auxiliary=false retrain.warmup_epochs=0 retrain.augment.crop=1 retrain.augment.cutout=0
performance.threads=1 performance.compile=false
"""
WHOLE = STEPS + RETRAINING
# a search in seconds stays one, and the file that predicts its retraining does too
TINY = {"run": WHOLE, "search": STEPS, "plan": WHOLE, "retrain": RETRAINING, "compare": WHOLE}
SMALLER = {
    "--data cifar10 --download": "--data npz:cifar10.npz",
    "--seeds 0-4": "--seeds 0",
    "--seeds 0-2": "--seeds 0",
    "random:0-7": "random:0",
    "--rank 150": "--rank 5",
    "--memory 11GB --hours 48": "--hours 48",
    "hyper-cleaning": "hyper-cleaning --steps 2",
}


def images(count, size, draw, folder, names):
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(
                folder / name / f"{number}.png"
            )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What the recipes take for granted: images as an array and in folders, and a benchmark's table."""
    folder, draw = tmp_path_factory.mktemp("recipes"), np.random.default_rng(0)
    labels = np.arange(60) % 3
    pixels = draw.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "cifar10.npz", x_train=pixels, y_train=labels, x_test=pixels[:30], y_test=labels[:30])
    images(20, 12, draw, folder / "photos" / "train", ("cat", "dog"))
    images(3, 10, draw, folder / "photos" / "test", ("cat", "dog"))
    images(2, 9, draw, folder, ("holiday",))
    (folder / "holiday" / "0.png").rename(folder / "photo.png")
    worth = {"none": 0, "skip_connect": 5, "avg_pool_3x3": 3, "nor_conv_1x1": 9, "nor_conv_3x3": 12}
    lines = ["arch,c10_test_200ep,c10_valid25k_12ep"]
    for word in product(worth, repeat=6):
        accuracy = 20 + sum(worth[name] for name in word)
        lines.append("|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|,".format(*word) + f"{accuracy},{accuracy / 2}")
    (folder / "nb201.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    for language, name in (("python", "mine.py"), ("yaml", "my_space.yaml")):
        block = re.search(rf"`{name}`.*?```{language}\n(.*?)```", TEXT, re.DOTALL)
        (folder / name).write_text(block[1], encoding="utf-8")
    return folder


@pytest.fixture
def alone(monkeypatch, place, registrations_forgotten):
    """Every command as in a process of its own; what it would start in further ones stays in this one."""

    def measure(stage, config, genotype, imports):
        found = plan_probe.probe(stage, config, genotype, 0.0)
        return plan.Cost(found.pop("memory_bytes"), found.pop("hours"), found)

    def run_all(chains, *_):
        for chain in chains:
            for run in chain:
                assert cli.main(run.arguments) == 0
        return []

    monkeypatch.chdir(place)
    monkeypatch.setattr(compare, "run_all", run_all)
    monkeypatch.setattr(plan, "measure_stage", measure)
    for name in ("WARM_STEPS", "MIN_STEPS"):
        monkeypatch.setattr(plan_probe, name, 1)

    def fresh(words):
        with registrations_forgotten():
            return cli.main(words)

    return fresh


def tiny(command):
    """The words of a command, with settings that take a second."""
    for large, small in SMALLER.items():
        command = command.replace(large, small)
    words = shlex.split(command.replace("\\\n", " "), comments=True)[1:]
    layers = 1 if "nas_bench_201_cpu" in words else 3
    return words + TINY.get(words[0], "").format(layers=layers).split()


@pytest.mark.slow
@pytest.mark.parametrize("title, text", RECIPES, ids=[title.split(":")[0] for title, _ in RECIPES])
def test_recipe(title, text, alone, capsys):
    commands = re.findall(COMMAND, text, re.MULTILINE)
    assert commands
    for command in commands:
        words = tiny(command)
        if words[0] in ONLY_READ:
            assert cli.parse_arguments(words).function
            continue
        code = alone(words)
        assert code == 0, f"{command}\n{capsys.readouterr().err[-2000:]}"
    if title.startswith("Recipe 1"):
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(block, title, "exec"), {"__name__": "readme"})


def test_there_are_four_recipes():
    assert [title.split(":")[0] for title, _ in RECIPES] == [f"Recipe {n}" for n in (1, 2, 3, 4)]
