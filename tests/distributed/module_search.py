"""What one process of a group does in `test_module_search`: short searches in a module, saved by rank.

torchrun --nproc-per-node 2 tests/distributed/module_search.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from nas_moreau import Choice, distributed, search_module


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, x[:, :1].tanh()


def module(norm: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    options = {"tanh": nn.Tanh(), "relu": nn.ReLU(), "linear": nn.Linear(6, 6)}
    return nn.Sequential(nn.Linear(4, 6), norm(6), Choice(options, name="middle"), nn.Linear(6, 1)).double()


def squared(net: nn.Module, batch: Any) -> torch.Tensor:
    return (net(batch[0]) - batch[1]).square().mean()


def by_sampler() -> DataLoader:
    rows = TensorDataset(*data())
    rank, count = distributed.rank(), distributed.world_size()
    return DataLoader(rows, 16, sampler=DistributedSampler(rows, num_replicas=count, rank=rank))


CASES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "plain": (nn.Identity, {}),
    "norms": (nn.BatchNorm1d, {}),
    "limits": (nn.Identity, {"penalty": {"parameters": 0.1}, "max_parameters": 50}),
    "random": (nn.Identity, {"method": "random"}),
    "loader": (nn.Identity, {}),
}


def run(folder: Path) -> dict[str, Any]:
    """Returns the results of all cases, and a resumed one of the first."""
    found = {}
    for name, (norm, settings) in CASES.items():
        train = by_sampler() if name == "loader" else data()
        keywords = dict(steps=4, device="cpu", batch_size=16, **settings)
        keywords |= {"output": folder / name} if name == "plain" else {}
        result = search_module(module(norm), squared, train, **keywords)
        found[name] = {
            "choices": result.choices,
            "weights": result.weights,
            "tensors": [t.double() for t in result.network().state_dict().values()],
        }
        if name == "plain":
            again = search_module(module(norm), squared, train, resume=True, **keywords)
            found["again"] = {**found[name], "choices": again.choices, "weights": again.weights}
            rows = result.compare_random(1, steps=2, seeds=1).rows
            found["compared"] = {"choices": {}, "weights": {}, "tensors": [torch.tensor([row.loss for row in rows])]}
    return found


if __name__ == "__main__":
    place = Path(sys.argv[1])
    with distributed.session():
        done = run(place)
    torch.save(done, place / f"{distributed.rank()}.pt")
