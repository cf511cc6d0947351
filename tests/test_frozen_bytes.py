"""Digests of every byte that toy runs and solves leave: a change of structure must not move them.

Floating-point bytes depend on torch's version and on the vector instructions of the processor, so the digests are
stored with both and compared only where both are the same. After a change of behaviour that is meant:

    NAS_MOREAU_REGENERATE=1 python -m pytest tests/test_frozen_bytes.py
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

import nas_moreau
from nas_moreau.architecture import load_genotype
from nas_moreau.bilevel import moreau, solve
from nas_moreau.problems import lasso, merely_convex, quadratic, sine
from nas_moreau.runs import load_checkpoint

STORED = Path(__file__).parent / "frozen" / "bytes.json"
MACHINE = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
REGENERATE = bool(os.environ.get("NAS_MOREAU_REGENERATE"))
SETTINGS = [
    "search.channels=4",
    "search.alphas.lr=0.05",
    "search.alphas.lr_min=0.05",
    "retrain.steps_per_epoch=3",
]
PROBLEMS = {
    "sine": lambda: sine(3),
    "quadratic": lambda: quadratic(4),
    "merely convex": lambda: merely_convex(4),
    "lasso": lambda: lasso(4),
}


def digest_of(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:16]


def tensors_of(value: object) -> list[bytes]:
    """The bytes of every tensor in a checkpoint's payload, in the order of its keys."""
    if isinstance(value, torch.Tensor):
        return [value.contiguous().flatten().view(torch.uint8).numpy().tobytes()] if value.numel() else [b""]
    if isinstance(value, dict):
        return [part for key in sorted(value, key=str) for part in tensors_of(value[key])]
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in tensors_of(item)]
    return []


def digests(folder: Path, keys: tuple[str, ...]) -> dict[str, str]:
    rows = [row.rsplit(",", 1)[0] for row in (folder / "metrics.csv").read_text().splitlines()]
    state = load_checkpoint(folder / "checkpoints")[0]
    found = {key: digest_of(*tensors_of(state[key])) for key in keys}
    # the columns in any order: a table that is written from another list of columns is the same table
    columns = sorted(zip(*[row.split(",") for row in rows]))
    found["metrics.csv"] = digest_of(repr(columns).encode())
    for name in ("alphas.csv", "genotype.json"):
        if (folder / name).exists():
            found[name] = digest_of((folder / name).read_bytes())
    return found


def search_digests(method, place, config, data) -> dict[str, str]:
    wider = ["search.partial_channels=2"] if "+pc" in method else []
    nas_moreau.search(config(*SETTINGS, f"search.method={method}", *wider), place, data=data)
    return digests(place, ("x", "y", "buffers"))


def retrain_digests(place, config, data) -> dict[str, str]:
    nas_moreau.retrain(config(*SETTINGS), load_genotype("DARTS_V2"), place, data=data)
    return digests(place, ("model",))


def solve_digests(name, order, *unused) -> dict[str, str]:
    case = PROBLEMS[name]()
    found = solve(case.problem, case.x, case.y, moreau(order=order), steps=60)
    return {"x": digest_of(*tensors_of(found.x)), "y": digest_of(*tensors_of(found.y))}


CASES = {
    **{f"search {m}": partial(search_digests, m) for m in ("moreau", "darts2", "rsws", "moreau+pc")},
    "retrain": retrain_digests,
    **{
        f"solve {name}, {order}": partial(solve_digests, name, order)
        for name in PROBLEMS
        for order in ("gauss-seidel", "lagged")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_have_not_moved(case, tmp_path, tiny_config, tiny_data):
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    if MACHINE not in stored and not REGENERATE:
        pytest.skip(f"no digests are stored for {MACHINE}")
    found = CASES[case](tmp_path / "run", tiny_config, tiny_data)
    if REGENERATE:
        stored.setdefault(MACHINE, {})[case] = found
        STORED.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    assert found == stored[MACHINE][case]
