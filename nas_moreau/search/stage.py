"""The search stage: train alphas and weights of a supernet by a bilevel method, then derive the cell."""

from __future__ import annotations

import time
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from nas_moreau import distributed
from nas_moreau.architecture import AlphaTable, Genotype, Network, SearchSpace, derive, load_space
from nas_moreau.architecture.networks.batch_norm import synchronise
from nas_moreau.architecture.networks.batch_shard import Share, sharing
from nas_moreau.architecture.networks.costs import expected_macs, relative_macs
from nas_moreau.architecture.networks.skeleton import check_images
from nas_moreau.config import Config
from nas_moreau.data import Data, describe_data, load_images, seed_for
from nas_moreau.data.batches import Batches, search_parts
from nas_moreau.drawing.cell import draw_pixels
from nas_moreau.drawing.genotype_files import genotype_files
from nas_moreau.drawing.heat_map import draw_heat_map
from nas_moreau.drawing.operation_style import in_words
from nas_moreau.runs import Monitor, Progress, RunFolder
from nas_moreau.runs.columns import EpochEnd, board_layout, edge_curves, epoch_metrics, tag
from nas_moreau.runs.history import Stage, stability
from nas_moreau.search.candidates import Score, measure, one_hot
from nas_moreau.search.collapse import CollapseGuard, assess, signs
from nas_moreau.search.hessian import dominant_eigenvalue, loss_of_alphas
from nas_moreau.search.methods import (
    build_method,
    check_macs_penalty,
    parse_method,
    registered,
    search_supernet,
)
from nas_moreau.search.random_cell import draw_cell
from nas_moreau.search.rules import Trained, check_derivation, derive_by_rule, named_rule
from nas_moreau.search.schedules import smaller_steps
from nas_moreau.search.step_numbers import COUNTS, epoch_means, step_numbers
from nas_moreau.search.supernet_problem import Batch, supernet_problem, write_back
from nas_moreau.training.device import peak_memory_bytes, refuse_float16, set_up_device, torch_settings_restored
from nas_moreau.training.evaluate import evaluate_model
from nas_moreau.training.finite_guard import FiniteGuard, tensors_in
from nas_moreau.training.hyperparameters import show_outcome
from nas_moreau.training.loop import show, take_steps
from nas_moreau.training.resume import pack, restore, save, unpack, with_rollbacks
from nas_moreau.training.shared_folder import finished_result, open_folder
from nas_moreau.training.signals import Abandoned, StopRequest


@torch_settings_restored()
def search(
    config: Config, output: str | PathLike[str], resume: bool = False, data: Data | None = None
) -> dict[str, Any]:
    """Searches and returns the result, as it stands in result.json (method, space, genotype, digest, ..., alphas).

    Args:
        config: The `search` section and what it needs.
        output: Run folder; a missing or empty one, or one to resume.
        resume: Go on from the last checkpoint.
        data: The images, if they are loaded already.

    Raises:
        InputError: Something handed in cannot be used; nothing was written.
        NonFinite: A loss or direction became NaN or infinite.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """

    def plan() -> _Search | None:
        return plan_search(config, load_images(config) if data is None else data)

    job = distributed.together(plan)
    with open_folder(output, config.to_dict(), "search", resume) as folder:
        if folder.finished:
            return finished_result(folder)
        return draw_cell(config, folder) if job is None else job.run(folder)


def plan_search(config: Config, data: Data) -> _Search | None:
    """Returns the search, ready to run (None for the method `random`); all that cannot be used is refused here.

    Raises:
        InputError: Something handed in cannot be used.
    """
    space = load_space(config.space)
    method, _ = parse_method(config.search.method)
    check_macs_penalty(config.search)
    named_rule(config.derive.rule)
    if method == "random":
        return None
    refuse_float16(config.performance)
    check_derivation(config, space, (data.num_classes, *data.input_size))
    return _Search(config, space, data, set_up_device(config))


class _Search:
    """One search in progress: what the loop needs at hand."""

    folder: RunFolder
    stop: StopRequest
    sums: dict[str, Tensor]
    shown: dict[str, Any]

    def __init__(self, config: Config, space: SearchSpace, data: Data, device: torch.device):
        self.config, self.settings, self.space, self.device = config, config.search, space, device
        parts = search_parts(config, data, device)
        size, seed = self.settings.batch_size, config.seed
        (self.rows,) = distributed.own_rows(size)
        synchronised = config.distributed.sync_batchnorm and distributed.processes() > 1
        self.share = Share(*self.rows, size, distributed.gathered if synchronised else None)
        self.channels_last = config.performance.channels_last
        self.lower = Batches(parts.weights, size, seed, "weights", self.rows, self.channels_last)
        self.upper = Batches(parts.architecture, size, seed, "architecture", self.rows, self.channels_last)
        self.held_out = parts.held_out
        self.num_classes, self.description = data.num_classes, describe_data(data)
        self.shape = (data.num_classes, *data.input_size)
        height, width = self.held_out.images.pixels.shape[-2:]
        self.image_size = height, width
        self.epoch_steps = self.settings.steps_per_epoch or len(self.lower)
        self.total_steps = self.epoch_steps * self.settings.epochs
        self._build(data.channels)

    def _build(self, in_channels: int) -> None:
        """Makes the supernet, the problem and the method's state at k = 0."""
        settings = self.settings
        torch.manual_seed(seed_for(self.config.seed, "initial weights"))
        supernet = search_supernet(self.space, settings, self.num_classes, in_channels)
        check_images(torch.empty((1, in_channels, *self.image_size), device="meta"), supernet)
        supernet = supernet.to(self.device)
        if self.channels_last:
            supernet = supernet.to(memory_format=torch.channels_last)
        if self.share.gather:
            synchronise(supernet)
        supernet.checkpointing = self.config.performance.activation_checkpointing
        self.supernet = supernet
        beta = settings.beta if "beta" in parse_method(settings.method)[1] else 0.0
        transform = torch.compile if self.config.performance.compile else lambda forward: forward
        self.macs = self._macs(in_channels)
        made = supernet_problem(
            supernet, beta, self.config.performance.precision, transform, registered(settings.method).mix,
            self._macs_penalty if self.macs else None,
        )  # fmt: skip
        self.problem, self.x, self.y, self.theta_buffers = made
        self._build_method(0)
        self.state = self.method.init(self.problem, self.x, self.y)
        self.step, self.sums, self.best, self.seconds, self.evaluating = 0, {}, -1.0, 0.0, 0.0
        self.c, self.shown, self.watch = None, {}, CollapseGuard()
        self.latest: dict[str, str] = {}  # held-out accuracy, idle share and margin of the last epoch, for the terminal
        self.drawn: tuple[str, int] = ("", -1)  # digest of the last cell in TensorBoard, and its step
        # a method that learns no alphas has none to guard
        self.collapse_guard = "off" if registered(settings.method).choose else settings.guard

    def _macs(self, in_channels: int) -> dict[str, Tensor]:
        """Returns the operations' shares of the dearest cells' multiply-adds, empty where nothing is penalised."""
        settings = self.settings
        if not settings.macs_penalty:
            return {}

        def build(genotype: Genotype) -> Network:
            return Network(genotype, settings.channels, settings.layers, self.num_classes, in_channels=in_channels)

        shares = relative_macs(self.space, build, (in_channels, *self.image_size))
        return {name: table.to(self.device, torch.float32) for name, table in shares.items()}

    def _macs_penalty(self, alphas: list[Tensor]) -> Tensor:
        return self.settings.macs_penalty * expected_macs(alphas, self.macs)

    def _build_method(self, rollbacks: int) -> None:
        """Makes the method, its step sizes halved as often as the run was rolled back."""
        self.rollbacks = rollbacks
        self.method, self.rules = build_method(smaller_steps(self.settings, 0.5**rollbacks), self.epoch_steps)

    def run(self, folder: RunFolder) -> dict[str, Any]:
        """Runs all steps that are left in `folder` and returns the result."""
        self.folder = folder
        folder.write_data(self.description)
        return with_rollbacks(folder, self.config.checkpoint.on_nonfinite == "rollback", self._run)

    def _run(self) -> dict[str, Any]:
        resumed = restore(self.folder, self.space, self._put_back)
        self.guard = FiniteGuard("search", self.device, self.rules.weights_lr)
        # a signal came while the last epoch was evaluated: its sums are still there
        return take_steps(self, resumed, due=self.step % self.epoch_steps == 0 and bool(self.sums))

    def over(self) -> bool:
        """Returns whether all steps are done, or the guard ends the search."""
        return self.step >= self.total_steps or self.watch.stops(self.collapse_guard)

    def advance(self) -> Any:
        """Does one step of the method."""
        # operations that draw (noise) use the global generator: tied to the step, so that a resumed run repeats it
        torch.manual_seed(seed_for(self.config.seed, "step", self.step))
        progress = self.step / self.total_steps
        upper, lower = (
            Batch(
                *part.batch(self.step),
                progress,
                seed_for(self.config.seed, f"mixing of {part.purpose}", self.step),
            )
            for part in (self.upper, self.lower)
        )
        before = self.x, self.y, self.state
        buffers = [*self.supernet.buffers(), *self.theta_buffers.values()]
        self.guard.before(lambda: buffers)
        with sharing(self.share):
            *after, info = self.method.step(self.problem, *before, upper_batch=upper, lower_batch=lower)
        self.step += 1
        terms = step_numbers(info)
        x, y, state = after
        values = {"alphas": x, "weights": y, "theta and momentum": state, "running statistics": buffers}
        self.x, self.y, self.state = self.guard.after(
            self.step, {name: value for name, value in terms.items() if name != "cosine"}, values, tuple(after), before
        )
        self.c = getattr(info, "c", None)
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        return info

    def _numbers(self) -> dict[str, float | str]:
        """Returns what a person watches: the epoch's mean losses, and what the end of the last epoch brought.

        The losses are read from the device only where that is free.
        """
        if self.device.type != "cpu" or not self.sums:
            return dict(self.latest)
        count = (self.step - 1) % self.epoch_steps + 1
        losses = {"F": "upper_loss", "f": "lower_loss"}
        return {name: self.sums[key].item() / count for name, key in losses.items() if key in self.sums} | self.latest

    def look(self, monitor: Monitor, progress: Progress, info: Any, seconds: float) -> None:
        """Shows the running means, and every now and then the step in TensorBoard."""
        if self.step % self.config.logging.every_steps == 0 or self.step == self.total_steps:
            size = self.settings.batch_size
            values: dict[str, Any] = {
                tag("step", name): value / size if name in COUNTS else value
                for name, value in step_numbers(info).items()
            }
            values["step/seconds"] = seconds
            if self.c is not None:
                values["step/c_k"] = self.c
            show(self, monitor, self.guard.read(values))
        progress.update(self.step, **self._numbers())

    def finish_epoch(self, monitor: Monitor, progress: Progress) -> None:
        """Evaluates, looks for signs of collapse, writes the epoch's row and drawing, saves."""
        distributed.check_equal({
            "alphas": self.x, "weights": self.y, "theta and momentum": list(tensors_in(self.state)),
            "running statistics": [*self.supernet.buffers(), *self.theta_buffers.values()],
        })  # fmt: skip
        epoch = self.step // self.epoch_steps - 1
        try:
            if self.step == self.total_steps:
                self._choose()
            before = time.monotonic()
            # operations that draw (noise): tied to the epoch, so that an evaluation repeated on resume is the same
            torch.manual_seed(seed_for(self.config.seed, "evaluation", epoch))
            table = self._table(self.x)
            genotype = derive(self.space, table)
            evaluation, derived = distributed.on_first(lambda: (self._evaluate(), self._one_hot(genotype)))
            self.evaluating += time.monotonic() - before
        except Abandoned:
            self.save(monitor)
            raise
        means = epoch_means(self.sums, self.epoch_steps, self.settings.batch_size)
        row: dict[str, Any] = {
            "epoch": epoch, **means, "held_out_loss": evaluation.loss, "held_out_accuracy": evaluation.accuracy,
        }  # fmt: skip
        if "f_theta" in means:
            row["gap"] = means["lower_loss"] - means["f_theta"]
        if self.c is not None:
            row["c_k"] = float(self.c)
        row |= {"one_hot_loss": derived.loss, "one_hot_accuracy": derived.accuracy}
        row["discretisation_gap"] = evaluation.accuracy - derived.accuracy
        if self.macs:
            row["expected_macs"] = expected_macs(self.supernet.operation_logits(self.x), self.macs).item()
        weights = table.to_dict()["alphas"]
        row |= signs(self.space, table, genotype)
        if self.settings.eigenvalue:
            before = time.monotonic()
            row["hessian_eigenvalue"] = distributed.on_first(self._eigenvalue)
            self.evaluating += time.monotonic() - before
        row |= {"weights_lr": self.rules.weights_lr(self.step - 1), "alphas_lr": self.rules.alphas_lr(self.step - 1)}
        end = EpochEnd(epoch, self.step, self.space, table, genotype, dict(row))
        row |= distributed.on_first(lambda: epoch_metrics(end))
        if epoch == 0:
            cells = self.space.cells if registered(self.settings.method).choose is None else ()
            monitor.layout(board_layout(row, cells, self.space.edges, self.space.operations))
        show(self, monitor, {tag("epoch", name): value for name, value in row.items() if name != "epoch"})
        show(self, monitor, edge_curves(weights, self.space.edges, self.space.operations))
        self._picture(monitor, genotype, weights)
        monitor.alphas(epoch, table)
        monitor.epoch(row | {"wall_seconds": self.seconds})
        self.folder.write_files(genotype_files(genotype, weights, self.space))
        self.sums = {}
        self.watch = self.watch.after(epoch, genotype, derived.accuracy, self.x)
        best = evaluation.accuracy > self.best
        self.best = max(self.best, evaluation.accuracy)
        margins = [row[f"margin_{cell}"] for cell in weights]
        self.latest = {
            "held-out_accuracy": f"{100 * evaluation.accuracy:.2f} %",
            "idle_edges": f"{100 * assess(genotype).idle_share:.0f} %",
            "margin": f"{sum(margins) / len(margins):.3f}",
        }
        self.save(monitor, best)
        losses = "".join(
            f"  {name} {means[key]:.3f}" for name, key in (("F", "upper_loss"), ("f", "lower_loss")) if key in means
        )
        read = "".join(f"  {name.replace('_', ' ')} {text}" for name, text in self.latest.items())
        progress.cell(in_words(genotype))
        progress.line(f"epoch {epoch + 1}/{self.settings.epochs}{losses}{read}")
        progress.line(f"  cell {genotype.digest()}  {in_words(genotype)}")

    def _picture(self, monitor: Monitor, genotype: Genotype, weights: dict[str, list[list[float]]]) -> None:
        """Shows the softmax weights as heat maps, and the cell if it is another one than before."""
        if not monitor.watched:
            return
        for name, table in weights.items():
            picture = draw_heat_map(table, self.space.edges, self.space.operations, genotype.cells[name].edges)
            monitor.image(f"softmax_weights/{name}", picture, self.step)
        if genotype.digest() != self.drawn[0]:
            self.drawn = genotype.digest(), self.step
        if self.drawn[1] == self.step:
            monitor.image("cell", draw_pixels(genotype, weights, self.space, scale=1.0), self.step)

    def show_again(self, monitor: Monitor) -> None:
        """Shows what the last step before a stop had shown."""
        monitor.scalars(self.shown, self.step)
        if self.step and self.step % self.epoch_steps == 0 and not self.sums:
            table = self._table(self.x)
            self._picture(monitor, derive(self.space, table), table.to_dict()["alphas"])

    def _choose(self) -> None:
        """Sets the alphas of a method that learns none."""
        choose = registered(self.settings.method).choose
        if choose is not None:
            before = time.monotonic()
            write_back(self.supernet, self.x, self.y)

            def chosen() -> tuple[list[Tensor], str]:
                x, note = choose(
                    self.space, self.supernet, self.upper.part, self.config.seed, self.channels_last,
                    self.stop.give_up,
                )  # fmt: skip
                return [tensor.to("cpu") for tensor in x], note

            x, note = distributed.on_first(chosen)
            self.x = [tensor.to(self.device) for tensor in x]
            self.seconds += time.monotonic() - before
            self.folder.log(f"search: {note}")

    def _evaluate(self) -> Any:
        write_back(self.supernet, self.x, self.y)
        return evaluate_model(
            self.supernet, self.held_out, self.num_classes, channels_last=self.channels_last, give_up=self.stop.give_up
        )

    def _one_hot(self, genotype: Genotype) -> Score:
        """Returns the derived cell's score on the held-out images, with the weights that `_evaluate` wrote back."""
        candidate = one_hot(self.space, genotype, self.supernet.classifier.weight)
        return measure(self.supernet, [candidate], self.held_out, self.channels_last, self.stop.give_up)[0]

    def _eigenvalue(self) -> float:
        """Returns the dominant eigenvalue for the architecture split's first batch and the weights written back."""
        loss = loss_of_alphas(self.supernet, *self.upper.shard(None).batch(0))
        return dominant_eigenvalue(loss, self.x)

    def _alphas(self, x: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.supernet.alphas, x))

    def _kept(self) -> list[Tensor]:
        """Returns the alphas that the cell is derived from: the last ones, or those that the guard kept."""
        return self.watch.alphas if self.collapse_guard == "best" and self.watch.alphas else self.x

    def _table(self, x: list[Tensor]) -> AlphaTable:
        return AlphaTable.from_logits(self.space, self._alphas(x))

    def finish(self, monitor: Monitor) -> dict[str, Any]:
        """Measures and derives; all is saved before, so that a signal may end it at once."""
        before = time.monotonic()
        torch.manual_seed(seed_for(self.config.seed, "final evaluation"))
        evaluation = self._evaluate()
        trained = Trained(self.supernet, self.held_out, self.upper.part)
        table = self._table(self._kept())
        derived = derive_by_rule(self.config, self.space, table, trained, self.shape)
        self.seconds += time.monotonic() - before
        self.evaluating += time.monotonic() - before
        weights = table.to_dict()["alphas"]
        health = assess(derived.before or derived.genotype, table)
        result = {
            "method": self.settings.method, "space": self.space.name, **derived.to_dict(), "seed": self.config.seed,
            "steps": self.step, "wall_seconds": self.seconds, "peak_memory_bytes": peak_memory_bytes(self.device),
            "held_out_accuracy": evaluation.accuracy, **table.to_dict(),
            "verdict": str(health), "health": health.to_dict(),
            "stability": stability(self.space, list(Stage(self.folder.path).alphas.values())),
        }  # fmt: skip
        if self.collapse_guard != "off":
            result["guard"] = self.watch.summary(self.collapse_guard)
        show_outcome(monitor, self.config, "search", result["digest"], self.step, held_out_accuracy=evaluation.accuracy)
        self.folder.write_files(genotype_files(derived.genotype, weights, self.space, png=True))
        self.folder.write_result(result)
        self.folder.status("finished", step=self.step, evaluation_seconds=self.evaluating)
        self.folder.log(f"search: finished with cell {result['digest']}")
        return result

    def save(self, monitor: Monitor, best: bool = False) -> None:
        self.guard.read()
        monitor.flush()
        payload = {
            "stage": "search", "step": self.step, "seconds": self.seconds, "best": self.best,
            "rollbacks": self.rollbacks, "c": self.c, "shown": self.shown,
            "drawn": list(self.drawn), "latest": self.latest, "evaluating": self.evaluating,
            "x": self.x, "y": self.y, "state": pack(self.state), "sums": self.sums,
            "buffers": dict(self.supernet.named_buffers()), "theta_buffers": self.theta_buffers,
            "alphas": self._alphas(self._kept()), "watch": pack(self.watch),
        }  # fmt: skip
        save(self.folder, self.space, payload, best)

    def _put_back(self, payload: dict[str, Any]) -> None:
        self._build_method(payload.get("rollbacks", 0))
        self.c, self.shown = payload.get("c"), payload.get("shown", {})
        self.latest = payload.get("latest", {})
        digest, step = payload.get("drawn", self.drawn)
        self.drawn = digest, step
        self.evaluating = payload.get("evaluating", 0.0)
        self.step, self.seconds, self.best = payload["step"], payload["seconds"], payload["best"]
        self.x = [tensor.to(self.device) for tensor in payload["x"]]
        self.y = [tensor.to(self.device) for tensor in payload["y"]]
        self.state = unpack(self.state, payload["state"], self.device)
        self.sums = {name: value.to(self.device) for name, value in payload["sums"].items()}
        self.watch = unpack(CollapseGuard(), payload["watch"], self.device) if "watch" in payload else CollapseGuard()
        for buffers, key in ((dict(self.supernet.named_buffers()), "buffers"), (self.theta_buffers, "theta_buffers")):
            for name, value in payload[key].items():
                buffers[name].copy_(value)
