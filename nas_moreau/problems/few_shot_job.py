"""Few-shot learning as a task of `learn`: training tasks by step, 60 held-out tasks per measurement, 600 at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nas_moreau.bilevel.methods import MethodInfo
from nas_moreau.data import Data
from nas_moreau.problems.few_shot import (
    HIDDEN,
    Episodes,
    Pool,
    backbone,
    episode_accuracies,
    few_shot_problem,
    heads,
    interval,
    pools,
)
from nas_moreau.problems.learn import MEASUREMENTS, LearningTask
from nas_moreau.problems.step_sizes import tuned_step_sizes

META_BATCH = 4
"""Tasks per step (the paper: 16)."""
STAY = 5
"""Steps on the same tasks before the next ones, whose heads are initialised again."""
QUERIES, TEST_QUERIES = 5, 15
MEASURED_TASKS, TEST_TASKS, CHUNK = 60, 600, 20

Tensors = list[Tensor]


def few_shot_job(config: dict[str, Any], info: MethodInfo, data: Data, device: torch.device) -> LearningTask:
    """Returns the task of a configuration (`task_options.FewShotConfig`).

    Raises:
        InputError: There are not enough classes, or not enough images of them.
    """
    ways, shots, seed, steps = (config[name] for name in ("ways", "shots", "seed", "steps"))
    train, test = pools(data, seed, device, ways)
    x = backbone(data.channels, seed, HIDDEN, device)
    fresh = heads(META_BATCH, ways, HIDDEN, x[0])
    spare = [len(found) - shots for found in test.members if len(found) > shots]
    queries = min([TEST_QUERIES, *spare])
    # whatever cannot be drawn is refused before anything is written
    train.draw(1, ways, shots, QUERIES, seed, "training", 0)
    test.draw(1, ways, shots, queries, seed, "test", 0)

    def episodes(k: int) -> tuple[Episodes, Episodes]:
        drawn = train.draw(META_BATCH, ways, shots, QUERIES, seed, "training", k // STAY)
        return drawn, drawn

    def renew(k: int, y: Tensors, state: Any) -> tuple[Tensors, Any]:
        if k % STAY:
            return y, state
        # other tasks, so heads and theta are initialised again; x and its update rule continue
        begun = [t.clone() for t in fresh]
        return begun, method.restart(state, begun)

    def measure(x: Tensors, pool: Pool, tasks: int, purpose: str) -> tuple[float, float]:
        found = []
        for chunk in range(-(-tasks // CHUNK)):
            count = min(CHUNK, tasks - chunk * CHUNK)
            found.append(episode_accuracies(x, pool.draw(count, ways, shots, queries, seed, purpose, chunk)))
        return interval(torch.cat(found))

    sizes = tuned_step_sizes("few-shot", steps, info)
    method = info.build(sizes)
    return LearningTask(
        name="few-shot",
        method_name=config["method"],
        problem=few_shot_problem(),
        x=x,
        y=fresh,
        method=method,
        evaluations=info.count(sizes),
        steps=steps,
        every=max(STAY, steps // MEASUREMENTS),
        measure=lambda x, y: {"accuracy": measure(x, test, MEASURED_TASKS, "looks")[0]},
        finish=lambda folder, x, y: _result(measure(x, test, TEST_TASKS, "test"), config),
        batches=episodes,
        renew=renew,
    )


def _result(found: tuple[float, float], config: dict[str, Any]) -> dict[str, Any]:
    return {
        "n": config["ways"],
        "ways": config["ways"],
        "shots": config["shots"],
        "seed": config["seed"],
        "accuracy": found[0],
        "interval": found[1],
        "test_tasks": TEST_TASKS,
    }
