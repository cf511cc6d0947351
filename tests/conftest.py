"""For every test: one thread (tiny tensors only lose by more, and results repeat), tiny images and configurations."""

import importlib.util
import os
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

# Runs in about a second on one core: the toy space, two steps an epoch.
TINY = [
    "space=toy",
    "search.channels=2",
    "search.layers=2",
    "search.epochs=3",
    "search.steps_per_epoch=2",
    "search.batch_size=4",
    "search.augment.crop=1",
    "retrain.channels=2",
    "retrain.layers=3",
    "retrain.epochs=2",
    "retrain.steps_per_epoch=2",
    "retrain.batch_size=8",
    "retrain.augment.crop=1",
]


COVERED_BY = ("architecture", "bilevel", "kernels")
"""Folders whose tests have to cover the two packages that are counted; the count takes a third of a test's time."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Turns the count off around other tests (the marker no_cover of pytest-cov does nothing in a worker)."""
    trace, of_threads = sys.gettrace(), threading.gettrace()
    if trace is None or item.path.relative_to(Path(__file__).parent).parts[0] in COVERED_BY:
        return (yield)
    sys.settrace(None)
    threading.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(trace)
        threading.settrace(of_threads)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # processes that tests start: threads that wait for each other cost most there


@pytest.fixture(autouse=True)
def modules_of_the_user_forgotten(tmp_path_factory):
    """Modules from a temporary folder are unknown again after a test: the next one may use the same name."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path_factory.getbasetemp())):
            del sys.modules[name]


@pytest.fixture(scope="session")
def script_of():
    """Returns a function from the name of a file in scripts/, without .py, to a fresh module of it."""

    def load(name):
        path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def make_data():
    """Returns a function that makes `Data` of random images, the same for training and test, labels 0, 1, 2, 0 ..."""
    from nas_moreau.data import Data, Images

    def make(count=60, channels=3, size=(8, 8), seed=0, classes=("a", "b", "c"), notes=()):
        draw = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (count, channels, *size), generator=draw, dtype=torch.uint8)
        images = Images(pixels, torch.arange(count) % len(classes))
        return Data("tiny", classes, images, images, (0.5,) * channels, (0.25,) * channels, notes)

    return make


@pytest.fixture(scope="session")
def tiny_data(make_data):
    """60 random 8x8 RGB images in three classes."""
    return make_data()


@pytest.fixture(scope="session")
def tiny_config():
    """Returns a function from overrides (key=value) to the tiny configuration with them."""
    from nas_moreau.config import load_config

    return lambda *overrides: load_config(overrides=[*TINY, *overrides])


@pytest.fixture
def stop_at():
    """Returns a function (step, signal) -> hook that raises the signal when that many steps are done."""
    from nas_moreau.training.loop import Hook

    def make(step, number=signal.SIGTERM):
        def stop(job, info):
            if job.counters.step == step:
                signal.raise_signal(number)

        return Hook(on_step=stop)

    return make


@pytest.fixture
def registrations_forgotten():
    """A context manager after which operations, methods, sources and metrics registered within are unknown again."""
    from nas_moreau.architecture.networks.skeleton import BLOCKS
    from nas_moreau.architecture.spaces.operation_table import OPERATIONS
    from nas_moreau.architecture.spaces.skeletons import SKELETONS
    from nas_moreau.bilevel import methods
    from nas_moreau.data.sources import SOURCES
    from nas_moreau.runs import columns
    from nas_moreau.search import mixing, rules

    @contextmanager
    def forgotten():
        registries = (
            OPERATIONS,
            methods.METHODS,
            mixing.MIXINGS,
            rules.RULES,
            SOURCES,
            SKELETONS,
            BLOCKS,
        )
        registries += (columns.CHARTS, columns.COLUMNS, columns.METRICS)
        before = [dict(registry) for registry in registries]
        try:
            yield
        finally:
            for registry, content in zip(registries, before):
                registry.clear()
                registry.update(content)

    return forgotten


@pytest.fixture(scope="session")
def unfinish():
    """Returns a function that makes a finished run unfinished: no result.json, no record of the files."""

    def take_away(folder):
        for name in ("result.json", "files.json"):
            (folder / name).unlink()

    return take_away
