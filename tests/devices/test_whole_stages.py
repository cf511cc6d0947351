"""Search and retraining as a whole on a simulated device: everything in its place, and nothing waits for the device."""

import csv
from collections import Counter

import pytest
import torch

from nas_moreau.architecture import published_cell
from nas_moreau.architecture.networks import native
from nas_moreau.diagnostics.verify_performance import CPU, TOLERANCES, errors, retraining_step, search_step
from nas_moreau.search import mixing
from nas_moreau.search.stage import search
from nas_moreau.training.loop import Hook
from nas_moreau.training.retrain import retrain

DEVICE = torch.device("lazy")
SETTINGS = [
    "device=lazy",
    "logging.every_steps=3",
    "search.channels=4",
    "search.epochs=1",
    "search.steps_per_epoch=4",
    "search.partial_channels=2",
    "retrain.epochs=1",
    "retrain.steps_per_epoch=4",
    "retrain.batch_size=4",
]
HERE = ["device=cpu", "logging.tensorboard=false"]
# methods whose draws depend on the alphas, and are made on the CPU so as to be the same everywhere: they wait once an
# evaluation, and where the gradient goes the same way back
DRAW = {
    "gdas": {"search/mixing.py:gumbel_paths": 2},
    "drnas+pc": {"search/mixing.py:dirichlet_weights": 2, "bilevel/tensors.py:value_and_grads": 1},
}
METHODS = ["moreau+beta", "darts2", "gdas", "drnas+pc", "rsws"]  # steps that are recorded cannot wait: test_capture.py
CELL = published_cell("DARTS_V2")


@pytest.fixture
def tiny(tiny_config):
    return lambda *overrides: tiny_config(*SETTINGS, *overrides)


def numbers(folder):
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [float(value) for row in rows for name, value in row.items() if value and name != "wall_seconds"]


@pytest.fixture(autouse=True)
def portable(monkeypatch):
    """The CPU takes the path of other devices, so that numbers are not apart by more than rounding."""
    monkeypatch.setattr(native.kernel, "available", lambda: False)
    monkeypatch.setattr(mixing, "GENOTYPES", 4)  # that rsws measures at its end


@pytest.fixture
def waits(elsewhere):
    """A hook, and what it counts: for each step, how often it and its logging waited for the device, by line."""
    counts, before = [], []
    hook = Hook(
        before_step=lambda job: before.append(elsewhere.waits.copy()),
        on_step=lambda job, info: counts.append(elsewhere.waits - before[-1]),
    )
    return hook, counts


def check(counts, expected=None):
    """No wait in a step; one at most in logging it, and that once in a logging interval (3) or after the last step."""
    assert len(counts) == 4
    for step, found in enumerate(counts, 1):
        logging = (found - Counter(expected or {})).total()
        assert logging in {3: [1], 4: [0, 1]}.get(step, [0]), (step, found)
        assert (Counter(expected or {}) - found).total() == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_search_on_the_device_gives_the_numbers_of_the_cpu_and_waits_once_an_interval(
    method, tmp_path, waits, tiny, tiny_data
):
    hook, counts = waits
    config = tiny(f"search.method={method}", "device=lazy")
    there = search(config, tmp_path / "there", data=tiny_data, hooks=[hook])
    check(counts, DRAW.get(method))
    here = search(tiny(f"search.method={method}", *HERE), tmp_path / "here", data=tiny_data)
    assert numbers(tmp_path / "there") == pytest.approx(numbers(tmp_path / "here"), rel=1e-3, abs=1e-4)
    assert there.genotype == here.genotype


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [
            "retrain.ema=0.9",
            "retrain.label_smoothing=0.1",
            "retrain.validation=0.2",
            "retrain.mixup=0.2",
            "retrain.optimizer=adamw",
            "retrain.lr=0.001",
        ],
    ],
    ids=["published", "everything"],
)
def test_a_retraining_on_the_device_gives_the_numbers_of_the_cpu_and_waits_once_an_interval(
    overrides, tmp_path, waits, tiny, tiny_data
):
    hook, counts = waits
    there = retrain(tiny("device=lazy", *overrides), CELL, tmp_path / "there", data=tiny_data, hooks=[hook])
    check(counts)
    here = retrain(tiny(*HERE, *overrides), CELL, tmp_path / "here", data=tiny_data)
    assert numbers(tmp_path / "there") == pytest.approx(numbers(tmp_path / "here"), rel=1e-3, abs=1e-4)
    assert there.macs == here.macs and there.test_accuracy == here.test_accuracy


def test_tensors_of_two_places_do_not_meet(elsewhere):
    """The device itself: without this the tests above could not fail."""
    there = torch.arange(3.0, device=DEVICE)
    assert there.device == (there + 1).device == torch.zeros_like(there).device == DEVICE
    here = torch.ones(3)
    for mixed in (lambda: there + here, lambda: torch.stack([there, here]), lambda: there[here.long()]):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    assert not elsewhere.waits and (there * torch.tensor(2.0)).sum().item() == 6
    assert elsewhere.waits.total() == 1 and there.tolist() == [0, 1, 2] and elsewhere.waits.total() == 2
    bool(there[0] > 0), there[there > 0], torch.ones(3).copy_(there)
    assert elsewhere.waits.total() == 5


def test_settings_are_checked_on_the_device_against_the_cpu(elsewhere, tiny):
    config = tiny("retrain.auxiliary=false")
    exact, theta = search_step(config, CPU, 4, None, torch.float64)
    found = errors(search_step(config, DEVICE, 4, theta, torch.float32)[0], exact)
    assert found.within(TOLERANCES["float32"]) and found.loss > 0
    exact = retraining_step(config, CELL, CPU, 4, 16, torch.float64)
    assert errors(retraining_step(config, CELL, DEVICE, 4, 16, torch.float32), exact).within(TOLERANCES["float32"])
