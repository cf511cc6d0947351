"""The search stage: train alphas and weights of a supernet by a bilevel method, then derive the cell."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from nas_moreau import distributed
from nas_moreau.architecture import AlphaTable, derive, load_space
from nas_moreau.config import Config
from nas_moreau.data import Data, describe_data, load_images, seed_for
from nas_moreau.drawing.cell import genotype_files
from nas_moreau.runs.history import Stability
from nas_moreau.runs.identity import Identity
from nas_moreau.search.build import SearchSetup, build_search, search_identity
from nas_moreau.search.collapse import CollapseGuard, assess
from nas_moreau.search.engine import SearchJob
from nas_moreau.search.epoch import (
    draw_derived,
    draw_epoch,
    evaluate_epoch,
    evaluate_held_out,
    log_epoch,
    metrics_row,
    print_epoch,
    write_epoch,
)
from nas_moreau.search.few_images import few_images
from nas_moreau.search.methods import check_method, parse_method
from nas_moreau.search.random_cell import RandomSearchJob
from nas_moreau.search.result import SearchResult
from nas_moreau.search.rules import Derived, Trained, check_derivation, derive_by_rule, named_rule
from nas_moreau.search.short_training import Place
from nas_moreau.search.supernet_problem import write_back
from nas_moreau.training.device import peak_memory_bytes, refuse_float16, set_up_device, torch_settings_restored
from nas_moreau.training.evaluate import Evaluation
from nas_moreau.training.hparams import log_hparams
from nas_moreau.training.loop import Hook, Loop
from nas_moreau.training.resume import pack, unpack


@torch_settings_restored()
def search(
    config: Config,
    output: str | PathLike[str],
    resume: bool = False,
    data: Data | None = None,
    hooks: Sequence[Hook] = (),
) -> SearchResult:
    """Searches and returns the result, which result.json in the run folder holds too.

    Args:
        config: The `search` section and what it needs.
        output: Run folder; a missing or empty one, or one to resume.
        resume: Continue from the last checkpoint.
        data: The images, if they are loaded already.
        hooks: Called by the training loop.

    Raises:
        InputError: An argument cannot be used; nothing was written.
        NonFinite: A loss or direction became NaN or infinite.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    job = distributed.run_on_all_ranks(lambda: plan_search(config, load_images(config) if data is None else data))
    return job.run(output, resume, hooks)


def plan_search(config: Config, data: Data) -> SearchJob | RandomSearchJob:
    """Returns the search, ready to run; whatever cannot be used is refused here.

    Raises:
        InputError: An argument cannot be used.
    """
    space = load_space(config.space)
    method = check_method(config)
    named_rule(config.derive.rule)
    if method.is_random:
        return RandomSearchJob(config, space)
    refuse_float16(config.performance)
    check_derivation(config, space, (data.num_classes, *data.input_size))
    setup = build_search(config, data, set_up_device(config))
    return cell_search(setup, describe_data(data), search_identity(config, data))


def cell_search(
    setup: SearchSetup, description: dict[str, Any] | None = None, identity: Identity | None = None
) -> SearchJob:
    """Returns the search for cells with this set-up.

    Args:
        setup: The supernet, its images and its bilevel problem.
        description: Of the images, for data.json.
        identity: Digests of the images and the space.
    """
    return SearchJob(setup, CellSearch(setup), description, identity or {})


class CellSearch:
    """What is found by a search for cells, epoch by epoch (`search.engine.Subject`).

    Args:
        setup: The supernet, its images and its bilevel problem.

    Attributes:
        held_out: The images that accuracies are reported on.
        collapse: The collapse guard's state; `collapse_rule` says what it does.
        stability: How long the derived cell has not changed.
        drawn: Digest of the last cell in TensorBoard, and its step.
    """

    stage = "search"

    def __init__(self, setup: SearchSetup):
        self.setup, self.space, self.held_out = setup, setup.space, setup.parts.held_out
        # a method that learns no alphas has none to guard
        learned = parse_method(setup.config.search.method).learns_alphas
        self.collapse_rule = setup.config.search.guard if learned else "off"
        self.collapse, self.stability = CollapseGuard(), Stability()
        self.drawn: tuple[str, int] = ("", -1)

    @property
    def about(self) -> str:
        """The search space."""
        return f"space {self.space.name}"

    def configuration(self) -> dict[str, Any]:
        """Returns the whole configuration, plain data."""
        return self.setup.config.to_dict()

    def result_of(self, data: Mapping[str, Any]) -> SearchResult:
        """Returns the result that result.json holds."""
        return SearchResult.from_dict(data, self.space)

    def start(self, loop: Loop) -> None:
        """Logs what differs from the configuration, and what its images make likely."""
        search = self.setup.config.search
        if few := few_images(len(self.setup.parts.weights), search):
            loop.folder.log(f"search: {few}")
        if search.alphas.rule != "adam" and not parse_method(search.method).is_softmax:
            loop.folder.log(
                f"search: the weights of {search.method} are not the softmax of its alphas, so that Adam moves them, "
                f"not search.alphas.rule={search.alphas.rule}"
            )

    def stops(self) -> bool:
        """Returns whether the collapse guard ends the search."""
        return self.collapse.stops(self.collapse_rule)

    def end_epoch(self, job: SearchJob) -> tuple[dict[str, Any], bool]:
        """Evaluates the supernet and the derived cell, logs and writes both."""
        if job.counters.step >= job.total_steps:
            self._choose_alphas(job)
        found = evaluate_epoch(job, self)
        row = metrics_row(job, self, found)
        log_epoch(job, self, found, row)
        write_epoch(job, found, row)
        print_epoch(job, found, row)
        self.collapse = self.collapse.after(row["epoch"], found.genotype, found.one_hot.accuracy, job.counted)
        self.stability = self.stability.after(found.genotype)
        best = found.held_out.accuracy > job.counters.best
        job.counters.best = max(job.counters.best, found.held_out.accuracy)
        return row, best

    def _choose_alphas(self, job: SearchJob) -> None:
        """Sets the alphas of a method that learns none, after its last step."""
        setup, choose = self.setup, parse_method(self.setup.config.search.method).choose
        if choose is None:
            return
        begin = time.monotonic()
        write_back(setup.supernet, job.x, job.y)
        config, part, check_stop = setup.config, setup.parts.architecture, job.loop.stop.check

        def chosen() -> tuple[list[Tensor], str]:
            last = config.performance.channels_last
            x, note = choose(setup.space, setup.supernet, part, config.seed, last, check_stop)
            return [tensor.to("cpu") for tensor in x], note

        x, note = distributed.run_on_rank0(chosen)
        job.x = [tensor.to(setup.device) for tensor in x]
        seconds = time.monotonic() - begin
        job.counters.seconds += seconds
        job.loop.call("on_evaluate", job, "choice", len(part), seconds)
        job.loop.folder.log(f"search: {note}")

    def finish(self, job: SearchJob) -> SearchResult:
        """Derives the cell by the configuration's rule and returns the result."""
        setup, config = self.setup, self.setup.config
        begin = time.monotonic()
        torch.manual_seed(seed_for(config.seed, "final evaluation"))
        table = self.alpha_table(self.kept_alphas(job))

        def derived() -> tuple[Evaluation, Derived]:
            evaluation = evaluate_held_out(job, self)
            trained = Trained(setup.supernet, self.held_out, setup.parts.architecture, self._place(job.loop))
            return evaluation, derive_by_rule(config, setup.space, table, trained, setup.shape)

        evaluation, found = job.loop.evaluate(job, "derivation", len(self.held_out), derived)
        job.counters.seconds += time.monotonic() - begin
        result = SearchResult(
            method=config.search.method,
            space=setup.space.name,
            derived=found,
            seed=config.seed,
            steps=job.counters.step,
            wall_seconds=job.counters.seconds,
            peak_memory_bytes=peak_memory_bytes(setup.device),
            held_out_accuracy=evaluation.accuracy,
            alphas=table,
            health=assess(found.genotype, table, found.trained),
            stability=self.stability.to_dict(),
            guard=None if self.collapse_rule == "off" else self.collapse.summary(self.collapse_rule),
        )
        metrics = {"held_out_accuracy": result.held_out_accuracy}
        if not job.loop.folder.within_run:
            log_hparams(job.loop.monitor, config, "search", result.digest, metrics, result.steps)
        job.loop.folder.write_files(genotype_files(result.genotype, result.alphas, png=True))
        draw_derived(job, self, table, result.genotype)
        return result

    def _place(self, loop: Loop) -> Place:
        folder = loop.folder.path / "derivation"
        return Place(self.setup.parts.weights, folder, loop.stop.check, loop.progress.note)

    def alpha_table(self, x: list[Tensor]) -> AlphaTable:
        """Returns the softmax weights of alphas."""
        return AlphaTable.from_logits(self.space, self._named(x))

    def kept_alphas(self, job: SearchJob) -> list[Tensor]:
        """Returns the alphas that the cell is derived from: those that count, or those that the guard kept."""
        return self.collapse.alphas if self.collapse_rule == "best" and self.collapse.alphas else job.counted

    def _named(self, x: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.setup.supernet.alphas, x))

    def replay_log(self, job: SearchJob) -> None:
        """Shows the pictures of an epoch again."""
        table = self.alpha_table(job.counted)
        draw_epoch(job, self, table, derive(self.space, table))

    def state_dict(self, job: SearchJob) -> dict[str, Any]:
        """Returns the alphas that count, and the guards."""
        return {
            "alphas": self._named(self.kept_alphas(job)),
            "collapse": pack(self.collapse),
            "stability": self.stability.to_state(),
            "drawn": list(self.drawn),
            # measured latencies are other ones each time: a resumed search keeps its first ones
            **({"latencies": self.setup.costs["ms"]} if "ms" in self.setup.costs else {}),
        }

    def load_state_dict(self, payload: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.collapse = unpack(CollapseGuard(), payload["collapse"], self.setup.device)
        self.stability = Stability.from_state(payload["stability"])
        if "ms" in self.setup.costs:
            for name, table in payload["latencies"].items():
                self.setup.costs["ms"][name].copy_(table)
        digest, step = payload["drawn"]
        self.drawn = digest, step
