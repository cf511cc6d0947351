"""Several searches from one shared start that weigh quality against a cost differently: `pareto`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_moreau import distributed
from nas_moreau.bilevel import tchebycheff
from nas_moreau.errors import InputError, quoted, unknown
from nas_moreau.modules.check import ModuleLoss
from nas_moreau.modules.cost_table import KINDS, Costs
from nas_moreau.modules.found import Found
from nas_moreau.modules.front import RANDOM, SEARCHED, SINGLE, Front, Point, shares
from nas_moreau.modules.front_page import render_front
from nas_moreau.modules.pricing import Priced
from nas_moreau.modules.problem import softmax_mixtures
from nas_moreau.modules.search import ModuleRun, module_config, module_run
from nas_moreau.modules.setup import ModuleSetup, build_module_search
from nas_moreau.modules.stream import module_data
from nas_moreau.modules.training import compare_choices, keep_trainings, kept_trainings
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.search.engine import SearchJob
from nas_moreau.search.methods import parse_method
from nas_moreau.training.capture import copied
from nas_moreau.training.device import set_up_device, torch_settings_restored
from nas_moreau.training.signals import Interrupted

SHARPNESS = 10.0
"""mu of the smooth Tchebycheff scalarisation."""
Searched = tuple[float | None, dict[str, str], float]
"""Share of the cost, choices, seconds."""
Trained = dict[str, Any]
"""Loss and metric."""
NUMBERS = ("loss", "metric")
"""Their names."""


@torch_settings_restored()
def pareto(
    module: nn.Module,
    loss: ModuleLoss,
    train: Any,
    validation: Any = None,
    *,
    steps: int,
    points: int = 5,
    cost: str = "macs",
    start: float = 1.0,
    compare: bool = False,
    output: str | PathLike[str] | None = None,
    resume: bool = False,
    method: str = "moreau+beta",
    seed: int = 0,
    device: str = "auto",
    metric: Callable[[nn.Module, Any], Any] | None = None,
    batch_size: int | None = None,
    **sections: Mapping[str, Any],
) -> Front:
    """Searches for modules of different costs and returns the front of quality against cost.

    One search without a cost is the shared start. From its weights and alphas `points` searches go on, each with

        F = L0 (1/mu) log( exp(mu w_1 L / L0) + exp(mu w_2 C) )

    as upper objective: L the loss, L0 its value after the start, C the expected cost between the cheapest and the most
    expensive choices (0 to 1). It is the smooth Tchebycheff scalarisation (Lin et al., ICML 2024; MOMEHA, arXiv
    2608.12704, has it in bilevel problems); w_2 / w_1 = t / (1 - t), with t even between 0 and 1. The chosen modules
    are then trained alike from the weights that the module came with, and measured on the held-out samples.

    Args:
        module: Holds at least one Choice.
        loss: (module, batch) -> scalar.
        train: A Dataset, a DataLoader, or tensors with one row a sample.
        validation: Of the same form; by default a part of `train`.
        steps: Steps of each search after the start, and of each training.
        points: Number of searches.
        cost: "parameters", "macs", or "ms" (measured on the device).
        start: Steps of the shared start, relative to `steps`.
        compare: Also train as many random choices, and those of as many searches that each start from scratch, with an
            equal part of the start's steps: the hypervolumes show what the front is worth.
        output: Folder; by default nothing is written. Each search has a run folder in it; the outcome is in front.json
            and front.html.
        resume: Continue in `output`.
        method: A gradient method that mixes by softmax.
        seed: Of every random draw.
        device: As for `search_module`.
        metric: (module, batch) -> number, the higher the better; takes the place of the loss on the front.
        batch_size: Samples of a batch.
        sections: Sections of the configuration, as for `search_module`.

    Raises:
        InputError: An argument cannot be used.
        NonFinite: A loss or direction became NaN or infinite.
        Interrupted: SIGINT or SIGTERM; what was done is saved in `output`.

    Example:
        front = pareto(net, loss, (x, y), steps=300, cost="parameters")
        print(front)
        front.knee.choices
    """
    _check(steps, points, cost, start, method, sections)
    if distributed.world_size() > 1:
        raise InputError("pareto runs in one process.", "Start it without torchrun.")
    if resume and output is None:
        raise InputError("resume=True needs the folder.", "Give output=, the folder of the front to continue.")
    folder = None if output is None else Path(output)
    start_steps = max(1, round(start * steps))

    def build(count: int) -> ModuleSetup:
        config = module_config(count, method, seed, device, sections)
        data = module_data(train, validation, batch_size, config, set_up_device(config))
        return build_module_search(module, loss, data, config, count, metric)

    if folder is not None and not resume:
        _refuse_taken(folder)
    place = None if folder is None else folder / "start"
    priced = Priced.of(build(start_steps), {cost: 0.0}, {}, None, place)
    assert priced.costs is not None
    priced.costs.between(cost)  # refuses options of one cost
    begun = module_run(priced, loss, start_steps, place, resume=_resumes(folder, "start", resume))
    outcome = Found(begun.job.setup, begun.result, priced)
    runs = _Runs(build, priced.costs, cost, _upper_loss(begun), (loss, folder, resume))
    found = {SEARCHED: list(runs.searches(SEARCHED, steps, points, begun))}
    if compare:
        found[SINGLE] = list(runs.searches(SINGLE, steps + -(-start_steps // points), points, None))
        found[RANDOM] = [(None, choices, 0.0) for choices in outcome.random_choices(points)]
    trained = _trained(outcome, found, steps, folder, resume=resume)
    seconds = {kind: math.fsum(spent for *_, spent in several) for kind, several in found.items()}
    seconds[SEARCHED] += begun.result.wall_seconds
    all_points = _points(found, trained, lambda choices: outcome.costs(choices)[cost])
    front = Front(cost, tuple(all_points), steps, start_steps, seconds)
    if not front.best():
        raise InputError(
            "None of the chosen modules reached a finite loss in its training.", "Take a smaller search.weights.lr."
        )
    if folder is not None:
        write_atomic(folder / "front.json", (json.dumps(front.to_dict(), indent=1) + "\n").encode())
        write_atomic(folder / "front.html", render_front(front, folder.resolve().name).encode())
    return front


class _Runs:
    """The searches of a front, one for each share of the cost."""

    def __init__(
        self,
        build: Callable[[int], ModuleSetup],
        costs: Costs,
        cost: str,
        scale: float,
        keep: tuple[ModuleLoss, Path | None, bool],
    ):
        self._build, self._costs, self._cost, self._scale = build, costs, cost, scale
        self._loss, self._folder, self._resume = keep

    def searches(self, kind: str, steps: int, points: int, start: ModuleRun | None) -> Iterator[Searched]:
        """Yields share, choices and seconds of each search, from a common start or from scratch."""
        for number, share in enumerate(shares(points)):
            setup = self._build(steps)
            costs = Costs(self._costs.table, setup.places)
            priced = Priced(setup.with_upper(self._scalarised(costs, share)), costs, None, {})
            name = f"{kind}-{number}"
            entries = {"front": {"share": share, "cost": self._cost, "scale": self._scale}}
            run = module_run(
                priced,
                self._loss,
                steps,
                None if self._folder is None else self._folder / name,
                resume=_resumes(self._folder, name, self._resume),
                entries=entries,
                begin=None if start is None else lambda job: _continue(job, start.job),
            )
            yield share, dict(run.result.choices), run.result.wall_seconds

    def _scalarised(self, costs: Costs, share: float) -> Callable[[Tensor, list[Tensor]], Tensor]:
        """Returns (L, alphas) -> F."""
        scale, names, relative = self._scale, list(costs.places.by_name), costs.between(self._cost)
        ratio = share / (1 - share)
        weights = [1 / max(1.0, ratio), ratio / max(1.0, ratio)]

        def scalarised(value: Tensor, x: list[Tensor]) -> Tensor:
            mixed = {name: mixture.weights for name, mixture in zip(names, softmax_mixtures(x))}
            terms = [lambda *_: value / scale, lambda *_: relative(mixed)]
            return scale * tchebycheff(terms, weights, SHARPNESS)(x, None, None)

        return scalarised


@torch.no_grad()
def _continue(job: SearchJob, start: SearchJob) -> None:
    """Begins a search where another one ended, with its own step numbers."""
    job.x, job.y, job.state = copied((start.x, start.y, start.state._replace(k=0)))
    for own, other in (
        (job.setup.named_buffers(), start.setup.named_buffers()),
        (job.setup.posed.theta_buffers, start.setup.posed.theta_buffers),
    ):
        for name, value in other.items():
            own[name].copy_(value)


def _check(steps: int, points: int, cost: str, start: float, method: str, sections: Mapping[str, Any]) -> None:
    if type(steps) is not int or steps < 1:
        raise InputError(f"steps is {quoted(steps)}.", "Give a whole number of at least 1.")
    if type(points) is not int or points < 2:
        raise InputError(f"points is {quoted(points)}.", "Give a whole number of at least 2.")
    if cost not in KINDS:
        raise unknown("cost", cost, KINDS)
    if isinstance(start, bool) or not isinstance(start, int | float) or not 0 < start <= 10:
        raise InputError(f"start is {quoted(start)}.", "Give steps relative to those of a search, 0.5 for example.")
    if dict(sections.get("search", {})).get("restarts", 1) != 1:
        raise InputError("The searches of a front go on from one start: restarts do not go with it.", "Leave them out.")
    if sections.get("derive"):
        raise InputError("A front trains every choice alike: the section derive does not go with it.", "Leave it out.")
    known = parse_method(method)
    if not known.learns_alphas or known.mix is not None:
        raise InputError(
            f"'{method}' does not weigh options by the softmax of alphas, which the expected cost needs.",
            "Take moreau+beta, darts1 or another gradient method.",
        )


def _upper_loss(start: ModuleRun) -> float:
    """Returns the loss after the start, which the loss is measured by."""
    found = (start.result.held_out or {}).get("loss", math.nan)
    if not 0 < found < math.inf:
        raise InputError(
            f"The held-out loss after the start is {found:.4g}; the weighing against a cost needs a positive one.",
            "Add a constant to the loss, or start longer.",
        )
    return found


def _refuse_taken(folder: Path) -> None:
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}).", "Take another folder.") from None
    if taken:
        raise InputError(f"{folder} is not empty.", "Take another folder, or give resume=True to continue its front.")


def _resumes(folder: Path | None, name: str, resume: bool) -> bool:
    return resume and folder is not None and (folder / name).is_dir()


def _trained(
    found: Found, kinds: dict[str, list[Searched]], steps: int, folder: Path | None, *, resume: bool
) -> dict[str, Trained]:
    """Returns loss and metric of every module that was chosen, each trained once; a resumed front has trained.json."""
    kept = None if folder is None else folder / "trained.json"
    known = kept_trainings(kept, NUMBERS) if resume else {}
    for several in kinds.values():
        for _, choices, _ in several:
            if (key := json.dumps(choices, sort_keys=True)) in known:
                continue
            try:
                of = compare_choices(lambda c: found.network(True, c), found.setup, {SEARCHED: [choices]}, steps)
            except Interrupted as error:
                raise Interrupted(error.number, None if folder is None else str(folder)) from None
            known[key] = {name: of.to_dict()["rows"][0][name] for name in NUMBERS}
            keep_trainings(kept, known)
    return known


def _points(
    kinds: dict[str, list[Searched]], trained: dict[str, Trained], cost_of: Callable[[dict[str, str]], float]
) -> Iterator[Point]:
    for kind, several in kinds.items():
        for number, (share, choices, _) in enumerate(several):
            of = trained[json.dumps(choices, sort_keys=True)]
            loss = math.inf if of["loss"] is None else of["loss"]
            yield Point(kind, number, choices, cost_of(choices), loss, of["metric"], share)
