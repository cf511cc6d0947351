"""Search and retraining as a whole on a simulated device: everything in its place, and nothing waits for the device."""

import csv

import pytest
import torch

from nas_moreau.architecture import published_cell
from nas_moreau.config import load_config
from nas_moreau.data import Data, Images
from nas_moreau.stages.retrain import retrain
from nas_moreau.stages.search import search

TINY = [
    "space=toy", "search.channels=4", "search.layers=2", "search.epochs=2", "search.steps_per_epoch=4",
    "search.batch_size=4", "logging.every_steps=3",
    "retrain.channels=2", "retrain.layers=3", "retrain.epochs=2", "retrain.steps_per_epoch=4", "retrain.batch_size=4",
]  # fmt: skip
METHODS = ["moreau+beta", "moreau-gauss-seidel", "moreau-jacobi", "darts1", "darts2", "gdas", "drnas+pc", "rsws"]
CELL = published_cell("DARTS_V2")


def tiny(*overrides):
    return load_config(overrides=[*TINY, *overrides])


def data():
    pixels = torch.randint(0, 256, (60, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = Images(pixels, torch.arange(60) % 3)
    return Data("tiny", ("a", "b", "c"), images, images, (0.5,) * 3, (0.25,) * 3)


def numbers(folder):
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [float(value) for row in rows for name, value in row.items() if value and name != "wall_seconds"]


@pytest.mark.parametrize("method", METHODS)
def test_a_search_on_the_device_gives_the_numbers_of_the_cpu(method, tmp_path, elsewhere):
    there = search(tiny(f"search.method={method}", "device=lazy"), tmp_path / "there", data=data())
    here = search(tiny(f"search.method={method}", "device=cpu"), tmp_path / "here", data=data())
    assert numbers(tmp_path / "there") == pytest.approx(numbers(tmp_path / "here"), rel=1e-3, abs=1e-4)
    assert there["digest"] == here["digest"]
    print(elsewhere.waits)


def test_a_retraining_on_the_device_gives_the_numbers_of_the_cpu(tmp_path, elsewhere):
    everything = ["retrain.ema=0.9", "retrain.label_smoothing=0.1", "retrain.validation=0.2", "retrain.mixup=0.2"]
    for overrides, name in ((["retrain.drop_path=0"], "plain"), ([*everything, "retrain.drop_path=0"], "all")):
        there = retrain(tiny("device=lazy", *overrides), CELL, tmp_path / f"{name} there", data=data())
        here = retrain(tiny("device=cpu", *overrides), CELL, tmp_path / f"{name} here", data=data())
        assert numbers(tmp_path / f"{name} there") == pytest.approx(numbers(tmp_path / f"{name} here"), rel=1e-3, abs=1e-4)
        assert there["macs"] == here["macs"]
        print(elsewhere.waits)
