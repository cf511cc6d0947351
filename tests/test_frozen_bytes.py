"""Digests of every byte that toy runs and solves leave: a change of structure must not move them.

Floating-point bytes depend on torch's version and on the vector instructions of the processor, so the digests are
stored with both and compared only where both are the same. After a change of behaviour that is meant:

    NAS_MOREAU_REGENERATE=1 python -m pytest tests/test_frozen_bytes.py
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

import nas_moreau
from nas_moreau.architecture import load_genotype
from nas_moreau.bilevel import moreau, solve
from nas_moreau.config import load_config
from nas_moreau.data import Data, Images
from nas_moreau.problems import lasso, merely_convex, quadratic, sine
from nas_moreau.runs import load_checkpoint

STORED = Path(__file__).parent / "frozen" / "bytes.json"
MACHINE = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
REGENERATE = bool(os.environ.get("NAS_MOREAU_REGENERATE"))
TINY = [
    "space=toy", "search.channels=4", "search.layers=2", "search.epochs=3", "search.steps_per_epoch=2",
    "search.batch_size=4", "search.augment.crop=1", "search.alphas.lr=0.05", "search.alphas.lr_min=0.05",
    "retrain.channels=2", "retrain.layers=3", "retrain.epochs=2", "retrain.steps_per_epoch=3",
    "retrain.batch_size=8", "retrain.augment.crop=1",
]  # fmt: skip
PROBLEMS = {
    "sine": lambda: sine(3),
    "quadratic": lambda: quadratic(4),
    "merely convex": lambda: merely_convex(4),
    "lasso": lambda: lasso(4),
}


def tiny_data() -> Data:
    draw = torch.Generator().manual_seed(0)
    images = Images(torch.randint(0, 256, (60, 3, 8, 8), generator=draw, dtype=torch.uint8), torch.arange(60) % 3)
    return Data("tiny", ("a", "b", "c"), images, images, (0.5,) * 3, (0.25,) * 3)


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


def search_digests(method: str, place: Path) -> dict[str, str]:
    wider = ["search.partial_channels=2"] if "+pc" in method else []
    config = load_config(overrides=[*TINY, f"search.method={method}", *wider])
    nas_moreau.search(config, place, data=tiny_data())
    return digests(place, ("x", "y", "buffers"))


def retrain_digests(place: Path) -> dict[str, str]:
    nas_moreau.retrain(load_config(overrides=TINY), load_genotype("DARTS_V2"), place, data=tiny_data())
    return digests(place, ("model",))


def solve_digests(name: str, order: str) -> dict[str, str]:
    case = PROBLEMS[name]()
    found = solve(case.problem, case.x, case.y, moreau(order=order), steps=60)
    return {"x": digest_of(*tensors_of(found.x)), "y": digest_of(*tensors_of(found.y))}


CASES = {
    **{f"search {m}": lambda place, m=m: search_digests(m, place) for m in ("moreau", "darts2", "rsws", "moreau+pc")},
    "retrain": retrain_digests,
    **{
        f"solve {name}, {order}": lambda place, name=name, order=order: solve_digests(name, order)
        for name in PROBLEMS
        for order in ("gauss-seidel", "lagged")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_have_not_moved(case, tmp_path):
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    if MACHINE not in stored and not REGENERATE:
        pytest.skip(f"no digests are stored for {MACHINE}")
    found = CASES[case](tmp_path / "run")
    if REGENERATE:
        stored.setdefault(MACHINE, {})[case] = found
        STORED.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    assert found == stored[MACHINE][case]
