"""A checkpoint as this schema was first written: every later version of the schema must read it.

It is a search of the toy space: 1 channel, 1 cell, 3 classes, 3 steps of darts1. A change of what is saved needs a new
schema number; the file of that number is then written by

    NAS_MOREAU_REGENERATE=1 python -m pytest tests/runs/test_frozen_checkpoint.py
"""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch

from nas_moreau.architecture import Supernet, derive, load_space
from nas_moreau.errors import InputError
from nas_moreau.runs import load_checkpoint, save_checkpoint
from nas_moreau.runs.checkpoint import SCHEMA, read_checkpoint, seal
from nas_moreau.search.stage import search
from nas_moreau.search.supernet_problem import write_back

FOLDER = Path(__file__).parent / "frozen"
FROZEN = FOLDER / f"schema_{SCHEMA}_search_of_toy.pt"
KEYS = [
    "alphas",
    "buffers",
    "c",
    "collapse",
    "counters",
    "digests",
    "drawn",
    "latest",
    "processes",
    "stability",
    "stage",
    "state",
    "sums",
    "theta_buffers",
    "x",
    "y",
]


@pytest.fixture
def config(tiny_config):
    return tiny_config(
        "search.channels=1",
        "search.layers=1",
        "search.method=darts1",
        "search.epochs=1",
        "search.steps_per_epoch=3",
        "logging.tensorboard=false",
    )


@pytest.mark.skipif(not os.environ.get("NAS_MOREAU_REGENERATE"), reason="writes the frozen file")
def test_write_the_frozen_checkpoint(config, tiny_data, tmp_path):
    search(config, tmp_path / "a", data=tiny_data)
    shutil.copy(tmp_path / "a" / "checkpoints" / "last.pt", FROZEN)


def test_the_frozen_checkpoint_is_read():
    payload = read_checkpoint(FROZEN)
    assert payload["stage"] == "search" and payload["counters"]["step"] == 3 and len(payload["y"]) == 35
    tensors = hashlib.sha256(b"".join(t.numpy().tobytes() for key in ("x", "y") for t in payload[key]))
    assert tensors.hexdigest()[:16] == "3453751c09d215f2"
    assert derive(load_space("toy"), payload["alphas"]).digest() == "d412acbde6d8f4d1"


def test_what_is_saved_has_not_changed_without_a_new_schema(config, tiny_data, tmp_path):
    search(config, tmp_path / "a", data=tiny_data)
    for path in (FROZEN, tmp_path / "a" / "checkpoints" / "last.pt"):
        payload = read_checkpoint(path)
        assert sorted(payload) == KEYS
        assert set(payload["counters"]) == {"step", "epochs", "seconds", "evaluating", "best", "rollbacks", "logged"}


def test_its_tensors_still_fit_the_supernet():
    payload = read_checkpoint(FROZEN)
    supernet = Supernet(load_space("toy"), 1, 1, num_classes=3)
    write_back(supernet, payload["x"], payload["y"])
    for name, buffer in supernet.named_buffers():
        buffer.copy_(payload["buffers"][name])
    assert supernet.eval()(torch.zeros(1, 3, 8, 8)).isfinite().all()


def test_a_search_continues_from_it(config, tiny_data, tmp_path, unfinish):
    search(config, tmp_path / "a", data=tiny_data)
    unfinish(tmp_path / "a")
    checkpoints, frozen = tmp_path / "a" / "checkpoints", read_checkpoint(FROZEN)
    # a configuration has more keys with every version: its digest is that of today
    digests = read_checkpoint(checkpoints / "last.pt")["digests"]
    assert frozen["digests"] | {"configuration": digests["configuration"]} == digests
    save_checkpoint(checkpoints, frozen | {"digests": digests})
    longer = config.model_copy(update={"search": config.search.model_copy(update={"epochs": 2})})
    assert search(longer, tmp_path / "a", resume=True, data=tiny_data).steps == 6


def test_a_checkpoint_of_another_schema_is_refused_with_both_numbers(config, tiny_data, tmp_path, unfinish):
    search(config, tmp_path / "a", data=tiny_data)
    unfinish(tmp_path / "a")
    (tmp_path / "a" / "checkpoints" / "last.pt").write_bytes(seal(b"PK of another version", schema=1))
    for use in (
        lambda: load_checkpoint(tmp_path / "a" / "checkpoints"),
        lambda: search(config, tmp_path / "a", resume=True, data=tiny_data),
    ):
        with pytest.raises(InputError, match=f"schema 1, .*schema {SCHEMA}"):
            use()
