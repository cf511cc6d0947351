"""A checkpoint of schema 1 as it was first written: every later version must read it."""

import hashlib
from pathlib import Path

import torch

from nas_moreau.architecture import Supernet, derive, load_space
from nas_moreau.runs.checkpoint import read_checkpoint
from nas_moreau.search.supernet_problem import write_back

# the toy space, 1 channel, 1 cell, 3 classes, by darts1; never written anew
FROZEN = Path(__file__).parent / "frozen" / "schema_1_search_of_toy.pt"


def test_a_checkpoint_of_schema_1_is_read_for_ever():
    payload = read_checkpoint(FROZEN)
    assert payload["stage"] == "search" and payload["step"] == 3 and len(payload["y"]) == 35
    tensors = hashlib.sha256(b"".join(t.numpy().tobytes() for key in ("x", "y") for t in payload[key]))
    assert tensors.hexdigest()[:16] == "db006ac806db5135"
    assert derive(load_space("toy"), payload["alphas"]).digest() == "94f5976b307f4587"


def test_its_tensors_still_fit_the_supernet():
    payload = read_checkpoint(FROZEN)
    supernet = Supernet(load_space("toy"), 1, 1, num_classes=3)
    write_back(supernet, payload["x"], payload["y"])
    for name, buffer in supernet.named_buffers():
        buffer.copy_(payload["buffers"][name])
    assert supernet.eval()(torch.zeros(1, 3, 8, 8)).isfinite().all()
