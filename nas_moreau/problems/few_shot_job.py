"""Few-shot learning as a job: training tasks by step, few held-out tasks on the way, 600 at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
from nas_moreau.problems.learn import LOOKS, Job
from nas_moreau.problems.network_methods import Chosen

META_BATCH = 4
"""Tasks at once (the paper: 16)."""
STAY = 5
"""Steps on the same tasks before others take their place and the heads begin anew."""
QUERIES, TEST_QUERIES = 5, 15
LOOK_TASKS, TEST_TASKS, CHUNK = 60, 600, 20

Tensors = list[Tensor]


def few_shot_job(config: dict[str, Any], chosen: Chosen, data: Data, device: torch.device) -> Job:
    """Returns the job of a configuration (`tasks.FewShotConfig`).

    Raises:
        InputError: There are not enough classes, or not enough images of them.
    """
    ways, shots, seed, steps = (config[name] for name in ("ways", "shots", "seed", "steps"))
    train, test = pools(data, seed, device, ways)
    x = backbone(data.channels, seed, HIDDEN, device)
    fresh = heads(META_BATCH, ways, HIDDEN, x[0])
    spare = [len(found) - shots for found in test.members if len(found) > shots]
    queries = min([TEST_QUERIES, *spare])
    # what cannot be drawn is refused before anything is written
    train.draw(1, ways, shots, QUERIES, seed, "training", 0)
    test.draw(1, ways, shots, queries, seed, "test", 0)

    def episodes(k: int) -> tuple[Episodes, Episodes]:
        drawn = train.draw(META_BATCH, ways, shots, QUERIES, seed, "training", k // STAY)
        return drawn, drawn

    def renew(k: int, y: Tensors, state: Any) -> tuple[Tensors, Any]:
        if k % STAY:
            return y, state
        # other tasks, so heads and theta begin anew; x and its rule go on
        begun = [t.clone() for t in fresh]
        return begun, method.restart(state, begun)

    def measure(x: Tensors, pool: Pool, tasks: int, purpose: str) -> tuple[float, float]:
        found = []
        for chunk in range(-(-tasks // CHUNK)):
            count = min(CHUNK, tasks - chunk * CHUNK)
            found.append(episode_accuracies(x, pool.draw(count, ways, shots, queries, seed, purpose, chunk)))
        return interval(torch.cat(found))

    problem, method = few_shot_problem(), chosen.make(steps)
    return Job(
        "few-shot", config["method"], problem, x, fresh, method, chosen.evaluations, steps,
        max(STAY, steps // LOOKS), lambda x, y: {"accuracy": measure(x, test, LOOK_TASKS, "looks")[0]},
        lambda folder, x, y: _result(measure(x, test, TEST_TASKS, "test"), config), episodes, renew=renew,
    )  # fmt: skip


def _result(found: tuple[float, float], config: dict[str, Any]) -> dict[str, Any]:
    return {
        "n": config["ways"], "ways": config["ways"], "shots": config["shots"], "seed": config["seed"],
        "accuracy": found[0], "interval": found[1], "test_tasks": TEST_TASKS,
    }  # fmt: skip
