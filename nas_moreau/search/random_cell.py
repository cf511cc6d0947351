"""The search by `--method random`: a cell drawn uniformly from the space."""

from __future__ import annotations

import random
from collections.abc import Sequence
from os import PathLike

from nas_moreau.architecture import Genotype, SearchSpace
from nas_moreau.config import Config
from nas_moreau.data import seed_for
from nas_moreau.drawing.cell import genotype_files
from nas_moreau.search.result import SearchResult
from nas_moreau.search.rules import Derived
from nas_moreau.training.loop import Hook
from nas_moreau.training.resume import finished_result, open_folder

RANDOM = "random"
"""The name of the search method that draws a cell and searches nothing."""


def random_cell(space: SearchSpace, seed: int) -> Genotype:
    """Returns the genotype that `--method random` gives for a seed: uniform over the space."""
    return space.random_genotype(random.Random(seed_for(seed, "random cell")))


class RandomSearchJob:
    """A search that draws its cell and trains nothing."""

    def __init__(self, config: Config, space: SearchSpace):
        self.config, self.space = config, space

    def run(self, output: str | PathLike[str], resume: bool = False, hooks: Sequence[Hook] = ()) -> SearchResult:
        """Draws the cell into the run folder and returns the result; hooks are not called: there are no steps."""
        with open_folder(output, self.config.to_dict(), "search", resume, {"space": self.space.digest()}) as folder:
            if folder.finished:
                return SearchResult.from_dict(finished_result(folder), self.space)
            genotype = random_cell(self.space, self.config.seed)
            result = SearchResult(
                method=RANDOM,
                space=self.space.name,
                derived=Derived(genotype, {}),
                seed=self.config.seed,
                steps=0,
                wall_seconds=0.0,
                peak_memory_bytes=0,
            )
            folder.write_files(genotype_files(genotype, png=True))
            folder.finish(result.to_dict())
            return result
