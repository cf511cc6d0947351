"""The last stage of a search: candidates are really trained for a short time, and the best on unseen images is chosen.

Candidates are the derived cell and cells drawn in proportion to the weights of the search. Each is trained from scratch
in a narrow, deep network (depth matters to the ranking, width hardly) on the split that trained the supernet's weights.
Successive halving (Jamieson and Talwalkar, AISTATS 2016): after steps/2^r, ..., steps/2, steps of training the better
half by the loss on images of the architecture split goes on.

Every candidate is saved when a round ends and when a signal stops the search, so that it resumes where it was. Results
do not depend on interruptions: the batches of all candidates are the same, and tied to the step.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nas_moreau.architecture import AlphaTable, Genotype, SearchSpace, derive
from nas_moreau.config import Config, RetrainConfig
from nas_moreau.data import Part, seed_for
from nas_moreau.data.batches import Batches, RetrainImages
from nas_moreau.runs import load_checkpoint, save_checkpoint
from nas_moreau.training.evaluate import evaluate_model
from nas_moreau.training.recipe import build_network
from nas_moreau.training.signals import StopTraining
from nas_moreau.training.trainer import Trainer

DECAYS = 16
"""Learning rates of the cosine schedule: it falls this often."""

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
    draw = random.Random(seed_for(seed, "candidates of the last stage"))
    cells = {first.digest(): first}
    width = space.alpha_shape[1]
    for _ in range(DRAWS * count):
        if len(cells) >= count:
            break
        logits: dict[str, list[Any]] = {}
        for name, edges in table.cells.items():
            noisy = [[_log(weight) + _gumbel(draw) for weight in edge.weights.values()] for edge in edges]
            logits[name] = [[*row, *[0.0] * (width - len(row))] for row in noisy]
            if edges[0].edge_weight is not None:
                logits[f"edge_{name}"] = [_log(edge.edge_weight or 0.0) + _gumbel(draw) for edge in edges]
        cell = derive(space, logits)
        if allowed(cell):
            cells.setdefault(cell.digest(), cell)
    return list(cells.values())


def _log(weight: float) -> float:
    return math.log(max(weight, 1e-12))


def _gumbel(draw: random.Random) -> float:
    return -math.log(draw.expovariate(1.0) + 1e-300)


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
    recipe = short_config(config)
    last = config.performance.channels_last
    batches = Batches(
        place.weights,
        recipe.retrain.batch_size,
        config.seed,
        "short training",
        channels_last=last,
        setting="derive.trained.batch_size",
    )
    images = RetrainImages(batches, [batches], None, validation)
    left, record = list(cells), []
    plan = rounds(config)
    for number, (_, steps) in enumerate(plan):
        rows = []
        for k, cell in enumerate(left):
            place.report(f"last stage: round {number + 1}/{len(plan)}, cell {k + 1}/{len(left)}, to step {steps}")
            rows.append((_train(recipe, cell, classes, channels, images, validation, steps, place), cell))
        rows.sort(key=lambda row: row[0][0] if math.isfinite(row[0][0]) else math.inf)
        record.append(
            {
                "steps": steps,
                "candidates": [
                    {"digest": cell.digest(), "loss": loss if math.isfinite(loss) else None, "accuracy": accuracy}
                    for (loss, accuracy), cell in rows
                ],
            }
        )
        keep = 1 if number + 1 == len(plan) else math.ceil(len(left) / 2)
        left = [cell for _, cell in rows[:keep]]
    if place.folder is not None:
        shutil.rmtree(place.folder, ignore_errors=True)
    chosen = left[0]
    summary = {"images": len(validation), "note": NOTE, "moved": chosen.digest() != cells[0].digest()}
    return chosen, {**summary, "first": cells[0].digest(), "rounds": record}


def _train(
    recipe: Config,
    cell: Genotype,
    classes: int,
    channels: int,
    images: RetrainImages,
    validation: Part,
    steps: int,
    place: Place,
) -> tuple[float, float]:
    """Trains a candidate up to a number of steps, from where it was saved, and returns its loss and accuracy."""
    key = {"genotype": cell.to_json(), "recipe": recipe.retrain.model_dump(mode="json"), "seed": recipe.seed}
    saved = place.folder and place.folder / cell.digest()
    loaded = load_checkpoint(saved) if saved else None
    state: dict[str, Any] = {"key": key, "step": 0, "trainer": None, "scores": {}}
    if loaded is not None and loaded[0]["key"] == key:
        state = loaded[0]
    if str(steps) in state["scores"]:
        loss, accuracy = state["scores"][str(steps)]
        return loss, accuracy
    network = build_network(recipe, cell, classes, channels)
    trainer, step = Trainer(recipe, network, classes, images.batches.part.indices.device), state["step"]
    if state["trainer"] is not None:
        trainer.load_state_dict(state["trainer"])
    per_decay = recipe.retrain.steps_per_epoch or 1

    def save() -> None:
        if saved:
            save_checkpoint(saved, state | {"step": step, "trainer": trainer.state_dict()})

    try:
        while step < steps:
            place.check_stop()
            if step % per_decay == 0:
                trainer.scheduler.step(step // per_decay)
            trainer.step(images, step, 0.0)
            step += 1
        found = evaluate_model(
            network, validation, classes, channels_last=images.batches.channels_last, check_stop=place.check_stop
        )
    except StopTraining:
        save()
        raise
    state["scores"][str(steps)] = [found.loss, found.accuracy]
    save()
    return found.loss, found.accuracy
