"""The search by `--method random`: a cell drawn uniformly from the space."""

from __future__ import annotations

import random
from typing import Any

from nas_moreau.architecture import Genotype, SearchSpace, load_space
from nas_moreau.config import Config
from nas_moreau.data import seed_for
from nas_moreau.drawing.genotype_files import genotype_files
from nas_moreau.runs import RunFolder


def random_cell(space: SearchSpace, seed: int) -> Genotype:
    """Returns the genotype that `--method random` gives for a seed: uniform over the space."""
    return space.random_genotype(random.Random(seed_for(seed, "random cell")))


def draw_cell(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Draws the cell into the folder and returns the result of that search, as it stands in result.json."""
    space = load_space(config.space)
    genotype = random_cell(space, config.seed)
    result = {
        "method": "random", "space": space.name, "genotype": genotype.to_dict(), "digest": genotype.digest(),
        "seed": config.seed, "steps": 0, "wall_seconds": 0.0, "peak_memory_bytes": 0, "held_out_accuracy": None,
        "alphas": {},
    }  # fmt: skip
    folder.write_files(genotype_files(genotype, png=True))
    folder.write_result(result)
    folder.status("finished")
    return result
