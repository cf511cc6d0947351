"""What one process of a group does in `test_equality`: short searches and retrainings, their numbers saved by rank.

torchrun --nproc-per-node 2 tests/distributed/training.py FOLDER "search;retraining"
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_moreau import distributed
from nas_moreau.architecture import load_space
from nas_moreau.config import Config, make_config
from nas_moreau.data import Augment, Data, Images
from nas_moreau.search.build import build_search
from nas_moreau.search.random_cell import random_cell
from nas_moreau.search.stage import cell_search
from nas_moreau.search.supernet_problem import supernet_problem
from nas_moreau.training.retrain import plan_retraining

STEPS, FEW, BATCH = 20, 6, 8


def images() -> Data:
    """80 random images of 8x8, in two classes."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (80, 3, 8, 8), generator=draw, dtype=torch.uint8)
    labels = torch.arange(80) % 2
    train = Images(pixels, labels)
    return Data("random", ("a", "b"), train, train, (0.5,) * 3, (0.25,) * 3, ())


def configuration(**distributed_keys: Any) -> Config:
    search = {
        "channels": 4,
        "layers": 2,
        "batch_size": BATCH,
        "epochs": 2,
        "steps_per_epoch": STEPS,
        "weights": {"lr": 0.1},
        "alphas": {"lr": 0.01},
        "augment": {"crop": 1, "cutout": 2},
    }
    retrain = {
        "channels": 4,
        "layers": 2,
        "batch_size": BATCH,
        "epochs": 2,
        "steps_per_epoch": STEPS,
        "auxiliary": False,
        "drop_path": 0.5,
        "augment": {"crop": 1, "cutout": 2},
    }
    return make_config(
        {
            "space": "toy",
            "device": "cpu",
            "search": search,
            "retrain": retrain,
            "distributed": distributed_keys,
        }
    )


def in_double(augment: Augment) -> None:
    plain = augment.normalise
    augment.normalise = lambda pixels: plain(pixels).double()


def search_steps(norms: bool, method: str = "moreau+beta", steps: int = FEW, **keys: Any) -> dict[str, list[Tensor]]:
    """Returns alphas, weights, running statistics and sums for metrics.csv after some steps in float64."""
    config = configuration(**keys)
    config = config.model_copy(update={"search": config.search.model_copy(update={"method": method})})
    setup = build_search(config, images(), torch.device("cpu"))
    in_double(setup.parts.weights.augment)  # the upper level has the same
    setup.supernet.double()
    if not norms:
        setup.supernet.eval()  # norms by fixed statistics: nothing couples the images of a batch
    job = cell_search(replace(setup, posed=supernet_problem(setup.supernet, 1.0)))
    for _ in range(steps):
        job.train_step()
    buffers = [buffer for buffer in job.setup.buffers() if buffer.is_floating_point()]
    distributed.check_equal({"alphas": job.x, "weights": job.y, "running statistics": buffers})
    return {"alphas": job.x, "weights": job.y, "buffers": buffers, "sums": list(job.sums.values())}


def retrain_steps(norms: bool, distributed_keys: dict[str, Any] | None = None, **keys: Any) -> dict[str, list[Tensor]]:
    """Returns weights, moving averages and running statistics after 6 steps in float64, the last 3 with drop-path."""
    config = configuration(**(distributed_keys or {}))
    config = config.model_copy(update={"retrain": config.retrain.model_copy(update=keys)})
    data = images()
    job = plan_retraining(config, random_cell(load_space("toy"), 0), data)
    in_double(job.images.batches.part.augment)
    trainer = job.trainer
    trainer.network.double()
    if not norms:
        for part in trainer.network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        for cell in trainer.network.cells:
            cell.kernels = "portable"  # native kernels do not ask the norms
    trainer.average_gradients((3, 8, 8))
    job.epoch_steps = FEW // 2
    for _ in range(FEW):
        job.train_step()
    distributed.check_equal({"all": trainer.written()})
    averages = (
        [] if trainer.ema is None else [t for t in trainer.ema.module.state_dict().values() if t.is_floating_point()]
    )
    buffers = [buffer for buffer in trainer.network.buffers() if buffer.is_floating_point()]
    return {
        "weights": [p.detach() for p in trainer.network.parameters()],
        "buffers": buffers,
        "averages": averages,
        "sums": list(job.sums.values()),
    }


CASES: dict[str, Callable[[], dict[str, list[Tensor]]]] = {
    "search": lambda: search_steps(False, steps=STEPS),
    "search by Gauss-Seidel": lambda: search_steps(False, "moreau-gauss-seidel"),
    "search by darts2": lambda: search_steps(False, "darts2"),
    "search, local norms": lambda: search_steps(True),
    "search, synchronised norms": lambda: search_steps(True, sync_batchnorm=True),
    "retraining": lambda: retrain_steps(False, ema=0.9),
    "retraining with mixup": lambda: retrain_steps(False, mixup=0.5, cutmix=0.5),
    "retraining in parts": lambda: retrain_steps(False, accumulate=2),
    "retraining, local norms": lambda: retrain_steps(True),
    "retraining, synchronised norms": lambda: retrain_steps(True, {"sync_batchnorm": True}),
}


def in_double_precision(wanted: Sequence[str]) -> dict[str, Any]:
    """Returns the numbers of the named cases."""
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return {name: CASES[name]() for name in wanted}
    finally:
        torch.set_default_dtype(former)


def main(folder: Path, wanted: Sequence[str]) -> None:
    with distributed.session():
        found = in_double_precision(wanted)
        torch.save(found, folder / f"{distributed.world_size()}-{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(";"))
