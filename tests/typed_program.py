"""A user's program, checked by `mypy --strict` with the package: its public names have types."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import nas_moreau
from nas_moreau import Bilevel, Genotype, InputError, Result, load_config, load_run, solve


def program(photos: list[Path]) -> float:
    """Runs, reads, predicts and exports."""
    images = (np.zeros((60, 32, 32, 3), np.uint8), np.arange(60) % 3)
    result: Result = nas_moreau.run(load_config("smoke"), "runs/typed", data=images, search={"epochs": 1})
    again = load_run(result.path)
    cells: Genotype | None = again.genotype
    found: Result = nas_moreau.search("smoke", seed=1)
    try:
        rows = found.predict(photos)
    except InputError as error:
        print(error.cure)
        rows = []
    print(cells, [row["class"] for row in rows], result.export("onnx") / "model.onnx")
    return result.test_accuracy or 0.0


def upper(x: list[Tensor], y: list[Tensor], batch: object) -> Tensor:
    """F."""
    return (x[0] - 1).square().sum() + y[0].square().sum()


def lower(x: list[Tensor], y: list[Tensor], batch: object) -> Tensor:
    """f."""
    return (y[0] - x[0]).square().sum()


solution = solve(Bilevel(F=upper, f=lower), [torch.zeros(3)], [torch.zeros(3)])
print(solution.status, solution.converged)
