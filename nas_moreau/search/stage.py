"""The search stage: train alphas and weights of a supernet by a bilevel method, then derive the cell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from nas_moreau import distributed
from nas_moreau.architecture import AlphaTable, derive, load_space
from nas_moreau.architecture.networks.batch_shard import on_shard
from nas_moreau.config import Config
from nas_moreau.data import Data, describe_data, load_images, seed_for
from nas_moreau.data.batches import Batches
from nas_moreau.drawing.cell import genotype_files
from nas_moreau.runs.columns import tag
from nas_moreau.runs.history import Stability
from nas_moreau.runs.identity import Identity
from nas_moreau.search.build import SearchSetup, build_search, search_identity
from nas_moreau.search.collapse import CollapseGuard, assess
from nas_moreau.search.epoch import (
    COUNTS,
    draw_epoch,
    evaluate_epoch,
    evaluate_held_out,
    log_epoch,
    metrics_row,
    print_epoch,
    step_numbers,
    write_epoch,
)
from nas_moreau.search.methods import build_method, check_method, parse_method
from nas_moreau.search.random_cell import RandomSearchJob
from nas_moreau.search.result import SearchResult
from nas_moreau.search.rules import Derived, Trained, check_derivation, derive_by_rule, named_rule
from nas_moreau.search.schedules import smaller_steps
from nas_moreau.search.short_training import Place
from nas_moreau.search.supernet_problem import Batch, write_back
from nas_moreau.training.device import peak_memory_bytes, refuse_float16, set_up_device, torch_settings_restored
from nas_moreau.training.evaluate import Evaluation
from nas_moreau.training.finite_guard import FiniteGuard, tensors_in
from nas_moreau.training.hparams import log_hparams
from nas_moreau.training.loop import Hook, Loop, LoopSettings, run
from nas_moreau.training.resume import Counters, check_like, pack, unpack


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
    return SearchJob(setup, describe_data(data), search_identity(config, data))


class SearchJob:
    """A search: its set-up and its state, and what the training loop asks of it (`training.loop.Job`).

    Args:
        setup: The supernet, its images and its bilevel problem.
        description: Of the images, for data.json.
        identity: Digests of the images and the space.

    Attributes:
        counters: Steps, epochs and seconds done.
        x, y, state: Alphas, weights and the method's state.
        held_out: The images that accuracies are reported on.
        sums: Sums of the steps' numbers since the last epoch.
        c: The penalty c_k of the last step, None for methods without one.
        collapse: The collapse guard's state; `collapse_rule` says what it does.
        stability: How long the derived cell has not changed.
        latest: Numbers of the last epoch, for the terminal.
        drawn: Digest of the last cell in TensorBoard, and its step.
        loop: Folder, monitor and terminal, while it runs.
    """

    name = "search"
    loop: Loop

    def __init__(self, setup: SearchSetup, description: dict[str, Any], identity: Identity):
        config = setup.config
        self.setup, self.space, self.description, self.identity = setup, setup.space, description, identity
        self.held_out = setup.parts.held_out
        self.epoch_steps = setup.epoch_steps
        self.total_steps = self.epoch_steps * config.search.epochs
        self.loop_settings = LoopSettings.of(config)
        method = parse_method(config.search.method)
        # a method that learns no alphas has none to guard
        self.collapse_rule = config.search.guard if method.learns_alphas else "off"
        self.counters, self.collapse, self.stability = Counters(), CollapseGuard(), Stability()
        self._build_method()
        self.x, self.y = setup.posed.x, setup.posed.y
        # automatic constants are found on the first batches; other methods evaluate nothing before their first step
        first = (self._batch(setup.upper), self._batch(setup.lower)) if method.is_automatic else (None, None)
        self.state = self.method.init(setup.posed.problem, self.x, self.y, *first)
        self.sums: dict[str, Tensor] = {}
        self.c: Any = None
        self.latest: dict[str, str] = {}
        self.drawn: tuple[str, int] = ("", -1)

    def _build_method(self) -> None:
        """Makes the method, its step sizes halved as often as the run was rolled back, and its guard."""
        settings = smaller_steps(self.setup.config.search, 0.5**self.counters.rollbacks)
        self.method, self.schedules = build_method(settings, self.epoch_steps, self.setup.supernet.alpha_groups())
        self.guard = FiniteGuard(self.name, self.setup.device, self.schedules.weights_lr)

    def run(self, output: str | PathLike[str], resume: bool = False, hooks: Sequence[Hook] = ()) -> SearchResult:
        """Runs what is left in the run folder and returns the result; see `search`."""
        config = self.setup.config.to_dict()
        return run(self, "search", config, output, resume, hooks, lambda data: SearchResult.from_dict(data, self.space))

    # --- the loop ----------------------------------------------------------------------------------------------------

    def start(self, loop: Loop) -> None:
        """Begins or resumes in a run folder."""
        self.loop = loop
        search = self.setup.config.search
        if search.alphas.rule != "adam" and not parse_method(search.method).is_softmax:
            loop.folder.log(
                f"search: the weights of {search.method} are not the softmax of its alphas, so that Adam moves them, "
                f"not search.alphas.rule={search.alphas.rule}"
            )

    def done(self) -> bool:
        """Returns whether all steps are done, or the collapse guard ends the search."""
        return self.counters.step >= self.total_steps or self.collapse.stops(self.collapse_rule)

    def train_step(self) -> Any:
        """Does one step of the method and returns its info."""
        setup, step = self.setup, self.counters.step
        # operations that draw (noise) use the global generator: tied to the step, so that a resumed run repeats it
        torch.manual_seed(seed_for(setup.config.seed, "step", step))
        upper, lower = self._batch(setup.upper), self._batch(setup.lower)
        before, buffers = (self.x, self.y, self.state), setup.buffers()
        self.guard.before(lambda: buffers)
        with on_shard(setup.lower.shard, setup.gather):
            *after, info = self.method.step(setup.posed.problem, *before, upper_batch=upper, lower_batch=lower)
        self.counters.step += 1
        numbers = step_numbers(info)
        x, y, state = after
        values = {"alphas": x, "weights": y, "theta and momentum": state, "running statistics": buffers}
        checked = {name: value for name, value in numbers.items() if name != "cosine"}
        self.x, self.y, self.state = self.guard.after(self.counters.step, checked, values, tuple(after), before)
        self.c = getattr(info, "c", None)
        for name, value in numbers.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        return info

    def _batch(self, batches: Batches) -> Batch:
        seed = seed_for(self.setup.config.seed, f"mixing of {batches.purpose}", self.counters.step)
        return Batch(*batches.batch(self.counters.step), self.counters.step / self.total_steps, seed)

    def log_step(self, info: Any, seconds: float) -> None:
        """Shows the running means, and every `logging.every_steps` steps the step in TensorBoard."""
        config, step = self.setup.config, self.counters.step
        if step % config.logging.every_steps == 0 or step == self.total_steps:
            size = config.search.batch_size
            values: dict[str, Any] = {
                tag("step", name): value / size if name in COUNTS else value
                for name, value in step_numbers(info).items()
            }
            values["step/seconds"] = seconds
            if self.c is not None:
                values["step/c_k"] = self.c
            self.loop.log(self, self.guard.read(values))
        self.loop.progress.update(step, **self._running_means(), **self.latest)

    def _running_means(self) -> dict[str, float]:
        """Returns the epoch's mean losses, where reading them from the device costs nothing."""
        if self.setup.device.type != "cpu":
            return {}
        names, count = {"F": "upper_loss", "f": "lower_loss"}, self.steps_of_epoch()
        return {name: self.sums[key].item() / count for name, key in names.items() if key in self.sums}

    def steps_of_epoch(self) -> int:
        """Returns the number of steps done in the present epoch."""
        return (self.counters.step - 1) % self.epoch_steps + 1

    def end_epoch(self) -> tuple[dict[str, Any], bool]:
        """Evaluates the supernet and the derived cell, logs and writes both."""
        distributed.check_equal(
            {
                "alphas": self.x,
                "weights": self.y,
                "theta and momentum": list(tensors_in(self.state)),
                "running statistics": self.setup.buffers(),
            }
        )
        if self.counters.step >= self.total_steps:
            self._choose_alphas()
        found = evaluate_epoch(self)
        row = metrics_row(self, found)
        log_epoch(self, found, row)
        write_epoch(self, found, row)
        print_epoch(self, found, row)
        self.sums = {}
        self.collapse = self.collapse.after(row["epoch"], found.genotype, found.one_hot.accuracy, self.x)
        self.stability = self.stability.after(found.genotype)
        best = found.held_out.accuracy > self.counters.best
        self.counters.best = max(self.counters.best, found.held_out.accuracy)
        return row, best

    def _choose_alphas(self) -> None:
        """Sets the alphas of a method that learns none, after its last step."""
        setup, choose = self.setup, parse_method(self.setup.config.search.method).choose
        if choose is None:
            return
        begin = time.monotonic()
        write_back(setup.supernet, self.x, self.y)
        config, part, check_stop = setup.config, setup.parts.architecture, self.loop.stop.check

        def chosen() -> tuple[list[Tensor], str]:
            last = config.performance.channels_last
            x, note = choose(setup.space, setup.supernet, part, config.seed, last, check_stop)
            return [tensor.to("cpu") for tensor in x], note

        x, note = distributed.run_on_rank0(chosen)
        self.x = [tensor.to(setup.device) for tensor in x]
        seconds = time.monotonic() - begin
        self.counters.seconds += seconds
        self.loop.call("on_evaluate", self, "choice", len(part), seconds)
        self.loop.folder.log(f"search: {note}")

    def finish(self) -> SearchResult:
        """Derives the cell by the configuration's rule and returns the result."""
        setup, config = self.setup, self.setup.config
        begin = time.monotonic()
        torch.manual_seed(seed_for(config.seed, "final evaluation"))
        table = self.alpha_table(self.kept_alphas())

        def derived() -> tuple[Evaluation, Derived]:
            evaluation = evaluate_held_out(self)
            trained = Trained(setup.supernet, self.held_out, setup.parts.architecture, self._place())
            return evaluation, derive_by_rule(config, setup.space, table, trained, setup.shape)

        evaluation, found = self.loop.evaluate(self, "derivation", len(self.held_out), derived)
        self.counters.seconds += time.monotonic() - begin
        result = SearchResult(
            method=config.search.method,
            space=setup.space.name,
            derived=found,
            seed=config.seed,
            steps=self.counters.step,
            wall_seconds=self.counters.seconds,
            peak_memory_bytes=peak_memory_bytes(setup.device),
            held_out_accuracy=evaluation.accuracy,
            alphas=table,
            health=assess(found.before or found.genotype, table),
            stability=self.stability.to_dict(),
            guard=None if self.collapse_rule == "off" else self.collapse.summary(self.collapse_rule),
        )
        self._show(result)
        return result

    def _place(self) -> Place:
        folder = self.loop.folder.path / "derivation"
        return Place(self.setup.parts.weights, folder, self.loop.stop.check, self.loop.progress.line)

    def reported_weights(self) -> str | None:
        """Returns None: the result is of the last weights, which last.pt holds."""
        return None

    def _show(self, result: SearchResult) -> None:
        loop = self.loop
        metrics = {"held_out_accuracy": result.held_out_accuracy}
        log_hparams(loop.monitor, self.setup.config, "search", result.digest, metrics, result.steps)
        loop.folder.write_files(genotype_files(result.genotype, result.alphas, png=True))

    # --- alphas and checkpoints --------------------------------------------------------------------------------------

    def alpha_table(self, x: list[Tensor]) -> AlphaTable:
        """Returns the softmax weights of alphas."""
        return AlphaTable.from_logits(self.space, self._named(x))

    def kept_alphas(self) -> list[Tensor]:
        """Returns the alphas that the cell is derived from: the last ones, or those that the guard kept."""
        return self.collapse.alphas if self.collapse_rule == "best" and self.collapse.alphas else self.x

    def _named(self, x: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.setup.supernet.alphas, x))

    def replay_log(self) -> None:
        """Shows the pictures of an epoch again, if the run was resumed at its end."""
        if self.counters.epochs and self.counters.step % self.epoch_steps == 0 and not self.sums:
            table = self.alpha_table(self.x)
            draw_epoch(self, table, derive(self.space, table))

    def state_dict(self) -> dict[str, Any]:
        """Returns alphas, weights, the method's state, running statistics, sums and guards."""
        return {
            "x": self.x,
            "y": self.y,
            "state": pack(self.state),
            "buffers": dict(self.setup.supernet.named_buffers()),
            "theta_buffers": self.setup.posed.theta_buffers,
            "alphas": self._named(self.kept_alphas()),
            "sums": self.sums,
            "c": self.c,
            "collapse": pack(self.collapse),
            "stability": self.stability.to_state(),
            "latest": self.latest,
            "drawn": list(self.drawn),
        }

    def load_state_dict(self, payload: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        device = self.setup.device
        check_like([*payload["x"], *payload["y"]], [*self.x, *self.y])
        self._build_method()
        self.x = [tensor.to(device) for tensor in payload["x"]]
        self.y = [tensor.to(device) for tensor in payload["y"]]
        self.state = unpack(self.state, payload["state"], device)
        for buffers, key in (
            (dict(self.setup.supernet.named_buffers()), "buffers"),
            (self.setup.posed.theta_buffers, "theta_buffers"),
        ):
            check_like(payload[key], buffers)
            for name, value in payload[key].items():
                buffers[name].copy_(value)
        self.sums = {name: value.to(device) for name, value in payload["sums"].items()}
        self.c, self.latest = payload["c"], payload["latest"]
        self.collapse = unpack(CollapseGuard(), payload["collapse"], device)
        self.stability = Stability.from_state(payload["stability"])
        digest, step = payload["drawn"]
        self.drawn = digest, step
