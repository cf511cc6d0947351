"""The last stage of a search: candidates are really trained for a short time, and the best on unseen images is chosen.

Candidates are the derived cell and cells drawn in proportion to the weights of the search. Each is trained from scratch
in a narrow, deep network (depth matters to the ranking, width hardly) on the split that trained the supernet's weights.
Successive halving (Jamieson and Talwalkar, AISTATS 2016): after steps/2^r, ..., steps/2, steps of training the better
half by the loss on images of the architecture split goes on. What is measured is the moving average of the weights:
learning rates are high in all but the last round, and single weights are too noisy there to rank candidates.

Every candidate is saved when a round ends and when a signal stops the search, so that it resumes where it was. Results
do not depend on interruptions: the batches of all candidates are the same, and tied to the step.
"""

from __future__ import annotations

import itertools
import math
import random
import shutil
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nas_moreau.architecture import AlphaTable, Genotype, SearchSpace, derive
from nas_moreau.config import Config, RetrainConfig
from nas_moreau.data import Part, seed_for
from nas_moreau.data.batches import Batches, RetrainImages
from nas_moreau.runs import load_checkpoint, save_checkpoint
from nas_moreau.training.evaluate import evaluate_model
from nas_moreau.training.recipe import build_network
from nas_moreau.training.signals import StopTraining
from nas_moreau.training.trainer import Trainer

T = TypeVar("T")

TRAINED = "trained"
"""The derivation rule that this module is (`derive.rule=trained`)."""

DECAYS = 16
"""Learning rates of the cosine schedule: it falls this often."""

LONGEST = 25
"""Steps that the moving average of the weights looks back, at most a quarter of the first round: a longer one still
lags behind what is learned in a few hundred steps."""

DRAWS = 50
"""Draws for each candidate before the search for distinct cells ends."""

NOTE = (
    "chosen by the lowest loss on images of the architecture split: these losses do not estimate how good the cell is"
)


class Place(NamedTuple):
    """Where a last stage works: what it trains on, and what it may be stopped by.

    Attributes:
        weights: The images to train on.
        folder: Where candidates are saved; None saves nothing.
        check_stop: Called before every step; may raise StopTraining.
        report: Gets a line for the terminal.
    """

    weights: Part
    folder: Path | None = None
    check_stop: Callable[[], None] = lambda: None
    report: Callable[[str], None] = lambda line: None


def short_config(config: Config) -> Config:
    """Returns the configuration whose `retrain` section is the recipe of the candidates, at the search's image size."""
    settings = config.derive.trained
    first_round = rounds(config)[0][1]
    recipe = RetrainConfig(
        channels=settings.channels,
        layers=settings.layers or config.retrain.layers,
        epochs=DECAYS,
        steps_per_epoch=max(1, settings.steps // DECAYS),
        batch_size=settings.batch_size,
        optimizer="sgd",
        lr=settings.lr,
        auxiliary=False,
        drop_path=0.0,
        ema=max(0.0, 1 - 1 / min(first_round / 4, LONGEST)),
        augment=config.search.augment,
    )
    data = config.data
    if config.search.image_size is not None:
        data = data.model_copy(update={"image_size": config.search.image_size})
    return config.model_copy(update={"retrain": recipe, "data": data})


def rounds(config: Config) -> list[tuple[int, int]]:
    """Returns (candidates, steps after which they are compared) of every round."""
    count, found = config.derive.trained.candidates, []
    halvings = max(0, math.ceil(math.log2(count)) - 1) if count > 1 else 0
    for left in range(halvings, -1, -1):
        found.append((count, max(1, config.derive.trained.steps // 2**left)))
        count = math.ceil(count / 2)
    return found


def total_steps(config: Config) -> int:
    """Returns the steps of all candidates together."""
    before, total = 0, 0
    for count, steps in rounds(config):
        total, before = total + count * (steps - before), steps
    return total


def draw_cells(
    space: SearchSpace,
    table: AlphaTable,
    first: Genotype,
    count: int,
    seed: int,
    allowed: Callable[[Genotype], bool] = lambda genotype: True,
) -> list[Genotype]:
    """Returns up to `count` distinct cells: `first`, and draws in proportion to the softmax weights.

    Each draw adds Gumbel noise to the logarithms of the weights and derives by the rule of the space (perturb and
    maximise): an operation is the strongest of its edge with the probability of its weight.

    Args:
        space: The space of the search.
        table: Its weights.
        first: The derived cell.
        count: Number of cells.
        seed: Of the draws.
        allowed: Whether a cell may be a candidate (a budget, for example).
    """
    cells = (derive(space, noisy) for noisy in perturbed_tables(table, count, seed))
    return distinct(itertools.chain([first], filter(allowed, cells)), Genotype.digest, count)


def perturbed_tables(table: AlphaTable, count: int, seed: int) -> Iterator[AlphaTable]:
    """Yields tables to derive candidates from: `DRAWS` times as many as candidates are wanted.

    Args:
        table: The weights of the search.
        count: Number of candidates.
        seed: Of the noise.
    """
    draw = random.Random(seed_for(seed, "candidates of the last stage"))
    for _ in range(DRAWS * count):
        yield table.perturbed(draw)


def distinct(candidates: Iterable[T], key: Callable[[T], Hashable], count: int) -> list[T]:
    """Returns the first `count` candidates of different keys, or as many as there are.

    Args:
        candidates: Drawn as long as some are missing.
        key: Equal for candidates that are the same.
        count: Number of candidates; the first one is returned in any case.
    """
    found: dict[Hashable, T] = {}
    for candidate in candidates:
        found.setdefault(key(candidate), candidate)
        if len(found) >= count:
            break
    return list(found.values())


def train_and_choose(
    config: Config, cells: list[Genotype], classes: int, channels: int, validation: Part, place: Place
) -> tuple[Genotype, dict[str, Any]]:
    """Returns the chosen cell, and a record of the rounds.

    Args:
        config: The sections `derive`, `retrain`, `performance`, and the seed.
        cells: The candidates.
        classes: Number of classes.
        channels: Channels of the images.
        validation: The images that candidates are compared on.
        place: Where to work.

    Raises:
        InputError: There are fewer images than a batch.
        StopTraining: A signal arrived; what was trained is saved.
    """
    recipe, last = short_config(config), config.performance.channels_last
    size = recipe.retrain.batch_size
    batches = Batches(
        place.weights, size, config.seed, "short training", channels_last=last, setting="derive.trained.batch_size"
    )
    images = RetrainImages(batches, [batches], validation, validation)
    left = [_Candidate(recipe, cell, classes, channels, place) for cell in cells]
    record, plan = [], rounds(config)
    for number, (_, steps) in enumerate(plan):
        for k, candidate in enumerate(left):
            place.report(f"last stage: round {number + 1}/{len(plan)}, cell {k + 1}/{len(left)}, to step {steps}")
            candidate.train(images, steps)
        left.sort(key=lambda candidate: candidate.loss(steps))
        record.append({"steps": steps, "candidates": [candidate.row(steps) for candidate in left]})
        left = left[: math.ceil(len(left) / 2)]
    if place.folder is not None:
        shutil.rmtree(place.folder, ignore_errors=True)
    chosen = left[0].cell
    place.report(f"last stage: cell {chosen.digest()} has the lowest loss of {len(cells)}, {left[0].loss(steps):.3f}")
    summary = {"images": len(validation), "note": NOTE, "moved": chosen.digest() != cells[0].digest()}
    return chosen, {**summary, "first": cells[0].digest(), "rounds": record}


class _Candidate:
    """A cell in short training: it goes on from where it is, or where it was saved."""

    def __init__(self, recipe: Config, cell: Genotype, classes: int, channels: int, place: Place):
        self.recipe, self.cell, self.classes, self.place = recipe, cell, classes, place
        self.step = 0
        self.scores: dict[str, list[float]] = {}
        network = build_network(recipe, cell, classes, channels)
        self.trainer = Trainer(recipe, network, classes, place.weights.indices.device)
        self.key = {"genotype": cell.to_json(), "recipe": recipe.retrain.model_dump(mode="json"), "seed": recipe.seed}
        self.folder = place.folder and place.folder / cell.digest()
        loaded = load_checkpoint(self.folder) if self.folder else None
        if loaded is not None and loaded[0].get("key") == self.key:
            self.step, self.scores = loaded[0]["step"], loaded[0]["scores"]
            self.trainer.load_state_dict(loaded[0]["trainer"])

    def train(self, images: RetrainImages, steps: int) -> None:
        """Trains up to a number of steps and measures the loss there; saves, also when it is stopped."""
        if str(steps) in self.scores:
            return
        every = self.recipe.retrain.steps_per_epoch or 1
        try:
            while self.step < steps:
                self.place.check_stop()
                if self.step % every == 0:
                    self.trainer.scheduler.step(self.step // every)
                self.trainer.step(images, self.step, 0.0)
                self.step += 1
            last, stop = images.batches.channels_last, self.place.check_stop
            assert images.validation is not None
            found = evaluate_model(
                self.trainer.trained, images.validation, self.classes, channels_last=last, check_stop=stop
            )
            self.scores[str(steps)] = [found.loss, found.accuracy]
        except StopTraining:  # between two steps, or in the evaluation
            self._save()
            raise
        self._save()

    def _save(self) -> None:
        if self.folder:
            state = {"key": self.key, "step": self.step, "scores": self.scores, "trainer": self.trainer.state_dict()}
            save_checkpoint(self.folder, state)

    def loss(self, steps: int) -> float:
        """Returns the loss after a number of steps; one that is not finite is the worst."""
        loss = self.scores[str(steps)][0]
        return loss if math.isfinite(loss) else math.inf

    def row(self, steps: int) -> dict[str, Any]:
        """Returns the candidate's row of a round, for result.json."""
        loss, accuracy = self.scores[str(steps)]
        return {"digest": self.cell.digest(), "loss": loss if math.isfinite(loss) else None, "accuracy": accuracy}
