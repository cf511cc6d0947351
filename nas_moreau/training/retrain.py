"""The retraining stage: train the network of a genotype from scratch, then measure it once on the test images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nas_moreau import distributed
from nas_moreau.architecture import Genotype, Network, load_space, multiply_adds, parameter_count
from nas_moreau.architecture.networks.batch_norm import synchronise
from nas_moreau.architecture.networks.batch_shard import on_shard
from nas_moreau.architecture.networks.skeleton import check_images
from nas_moreau.config import Config
from nas_moreau.data import Augment, Batches, Data, Part, describe_data, load_images, seed_for, stratified_split
from nas_moreau.distributed import Shard
from nas_moreau.drawing.cell import genotype_files
from nas_moreau.drawing.contact_sheet import contact_sheet
from nas_moreau.drawing.network import Sizes, draw_network
from nas_moreau.errors import InputError
from nas_moreau.runs.columns import board_layout
from nas_moreau.runs.folder import WORST_FILE
from nas_moreau.training.device import (
    autocast,
    average_gradients,
    batchnorm_gather,
    peak_memory_bytes,
    set_up_device,
    torch_settings_restored,
)
from nas_moreau.training.evaluate import EvaluateResult, Evaluation, evaluate_model
from nas_moreau.training.finite_guard import FiniteGuard
from nas_moreau.training.hparams import log_hparams
from nas_moreau.training.loop import Hook, Loop, LoopSettings, run
from nas_moreau.training.recipe import build_network, build_optimizer, training_loss
from nas_moreau.training.resume import Counters, load_weights

WORST_IMAGES = 20
"""Number of misclassified test images to draw for the report."""


@dataclass(frozen=True)
class RetrainResult:
    """The outcome of a retraining.

    Attributes:
        digest: Of the genotype.
        parameters: Number of parameters, the auxiliary head excluded.
        macs: Multiply-adds of an image.
        epochs: Epochs trained.
        seed: Of the run.
        wall_seconds: Wall-clock time, evaluations included.
        peak_memory_bytes: The most that the process held; on an accelerator, that its allocator took.
        test_accuracy: On the test images, 0..1.
    """

    digest: str
    parameters: int
    macs: int
    epochs: int
    seed: int
    wall_seconds: float
    peak_memory_bytes: int
    test_accuracy: float

    def __str__(self) -> str:
        return f"test accuracy {self.test_accuracy:.4f}"

    def to_dict(self) -> dict[str, Any]:
        """Returns what result.json holds."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RetrainResult:
        """Returns the result that `to_dict` wrote."""
        return cls(**data)


@torch_settings_restored()
def retrain(
    config: Config,
    genotype: Genotype,
    output: str | PathLike[str],
    resume: bool = False,
    data: Data | None = None,
    hooks: Sequence[Hook] = (),
) -> RetrainResult:
    """Retrains and returns the result, which result.json in the run folder holds too.

    No choice is made by the test images: the last epoch's weights are reported, or, if `retrain.validation` sets some
    training images aside, those of the best epoch on them.

    Args:
        config: The `retrain` section and what it needs.
        genotype: The cells.
        output: Run folder; a missing or empty one, or one to resume.
        resume: Continue from the last checkpoint.
        data: The images, if they are loaded already.
        hooks: Called by the training loop.

    Raises:
        InputError: An argument cannot be used; nothing was written.
        NonFinite: The loss became NaN or infinite.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """

    def plan() -> RetrainJob:
        return plan_retraining(config, genotype, load_images(config) if data is None else data)

    return distributed.run_on_all_ranks(plan).run(output, resume, hooks)


def plan_retraining(config: Config, genotype: Genotype, data: Data) -> RetrainJob:
    """Returns the retraining, ready to run; whatever cannot be used is refused here.

    Raises:
        InputError: An argument cannot be used.
    """
    check_retraining(config, genotype, data)
    device = set_up_device(config)
    return RetrainJob(config, genotype, build_network(config, genotype, data.num_classes, data.channels), data, device)


def check_retraining(config: Config, genotype: Genotype, data: Data) -> None:
    """Refuses a retraining that cannot be run. The network is built without memory for its weights.

    Raises:
        InputError: An argument cannot be used.
    """
    if (config.retrain.mixup or config.retrain.cutmix) and config.retrain.batch_size % 2:
        raise InputError("Mixup and cutmix pair the images of a batch.", "Use an even retrain.batch_size.")
    space = load_space(config.space)
    if set(genotype.cells) != set(space.cells):
        raise InputError(
            f"The genotype is of space '{genotype.space}', whose networks are built otherwise than those of the "
            f"configuration's space '{space.name}'.",
            f"Set space={genotype.space}, or take a preset of that space.",
        )
    with torch.device("meta"):
        network = build_network(config, genotype, data.num_classes, data.channels)
        check_images(torch.empty((1, *data.input_size), device="meta"), network)
    build_optimizer(network, config.retrain)
    retraining_images(config, data)


class RetrainImages(NamedTuple):
    """The images of a retraining.

    Attributes:
        batches: The training images in whole batches.
        shards: The parts of a batch that this process accumulates.
        validation: Training images set aside by `retrain.validation`, or None.
        test: The test images.
    """

    batches: Batches
    shards: list[Batches]
    validation: Part | None
    test: Part


def retraining_images(config: Config, data: Data) -> RetrainImages:
    """Returns the images of a retraining, on the device of the data.

    Raises:
        InputError: There are fewer images than a batch, or a batch cannot be shared evenly.
    """
    settings, size, labels = config.retrain, config.retrain.batch_size, data.train.labels
    augment = Augment(data.mean, data.std, **settings.augment.model_dump())
    indices = {"train": torch.arange(len(labels), device=labels.device)}
    if share := settings.validation:
        indices = stratified_split(labels, {"train": 1 - share, "validation": share}, config.seed)
    parts = {name: Part(data.train, found, augment) for name, found in indices.items()}
    last = config.performance.channels_last
    batches = Batches(parts["train"], size, config.seed, "retraining", channels_last=last)
    shards = [batches.on(shard) for shard in distributed.own_shards(size, settings.accumulate)]
    return RetrainImages(batches, shards, parts.get("validation"), Part.whole(data.test, augment))


class RetrainJob:
    """A retraining: network, optimizer and images, and what the training loop asks of it (`training.loop.Job`).

    Attributes:
        counters: Steps, epochs and seconds done.
        network: The network; `forward` is it, compiled and with averaged gradients where that is configured.
        ema: The moving average of its weights, or None.
        optimizer, scheduler, scaler: timm's and torch's.
        loss, mixup: timm's loss, and its Mixup or None.
        images: Batches to train on, and what to evaluate on.
        sums: Loss and correct predictions since the last epoch.
        loop: Folder, monitor and terminal, while it runs.
    """

    name = "retrain"
    loop: Loop

    def __init__(self, config: Config, genotype: Genotype, network: Network, data: Data, device: torch.device):
        self.config, self.settings, self.genotype, self.device = config, config.retrain, genotype, device
        self.space, self.description = load_space(config.space), describe_data(data)
        self.data = data.to(device)
        self.images = retraining_images(config, self.data)
        self.epoch_steps = self.settings.steps_per_epoch or len(self.images.batches)
        self.total_steps = self.epoch_steps * self.settings.epochs
        self.loop_settings, self.counters = LoopSettings.of(config), Counters()
        self.gather = batchnorm_gather(config)
        self._build(network.to(device))

    def _build(self, network: Network) -> None:
        from timm.utils import ModelEmaV3

        performance = self.config.performance
        self.network = network.to(memory_format=torch.channels_last) if performance.channels_last else network
        self.network.checkpointing = performance.activation_checkpointing
        self.network.train()
        if self.gather is not None:
            synchronise(self.network)
        self.forward: Any = torch.compile(network) if performance.compile else network
        self.loss, self.mixup = training_loss(self.settings, self.data.num_classes)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=performance.precision == "float16")
        self.ema = ModelEmaV3(network, self.settings.ema) if self.settings.ema else None
        self._build_optimizer()
        self.sums = self._zeros()

    def _build_optimizer(self) -> None:
        """Makes optimizer and schedule, the learning rate halved as often as the run was rolled back, and the guard."""
        factor = 0.5**self.counters.rollbacks
        self.optimizer, self.scheduler = build_optimizer(self.network, self.settings, factor)
        self.guard = FiniteGuard(self.name, self.device, lambda step: self._lr())

    def _zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros((), dtype=torch.float64, device=self.device) for name in ("loss", "correct")}

    @property
    def trained(self) -> nn.Module:
        """The network whose accuracy counts: the moving average if there is one."""
        return self.network if self.ema is None else self.ema.module

    def run(self, output: str | PathLike[str], resume: bool = False, hooks: Sequence[Hook] = ()) -> RetrainResult:
        """Runs what is left in the run folder and returns the result; see `retrain`."""
        config = self.config.to_dict() | {"genotype": self.genotype.digest()}
        return run(self, "retrain", config, output, resume, hooks, RetrainResult.from_dict)

    # --- a step ------------------------------------------------------------------------------------------------------

    def train_step(self) -> Tensor:
        """Does one step of training and returns its loss."""
        self.network.drop_path = self._drop_path(self.counters.step // self.epoch_steps)
        self.guard.before(self.written)
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct, scale = self._accumulate()
        self.scaler.unscale_(self.optimizer)
        # an infinite clip changes nothing and still gives the norm
        clip = float("inf") if self.settings.clip is None else self.settings.clip
        gradient = nn.utils.clip_grad_norm_(self.network.parameters(), clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.counters.step += 1
        if self.ema is not None:
            self.ema.update(self.network, self.counters.step)
        # infinite gradients are a fault if the scale cannot be the reason
        terms = {"loss": loss, "gradient": torch.where(scale > 1, torch.zeros_like(gradient), gradient)}
        self.guard.after(self.counters.step, terms, {"weights, momentum and running statistics": self.written()})
        self.sums["loss"] += loss
        self.sums["correct"] += correct
        return loss

    def _accumulate(self) -> tuple[Tensor, Tensor, Tensor]:
        """Adds up the gradients of the batch's parts.

        Returns:
            The whole batch's loss and number of correct predictions, and the scale of the gradients.
        """
        count, losses, counts = len(self.images.shards), [], []
        for place, (shard, images, labels, targets) in enumerate(self._parts()):
            # drop-path and dropout draw from the global generator: tied to the step, so that a resumed run repeats
            torch.manual_seed(seed_for(self.config.seed, "step of retraining", self.counters.step))
            alone = place + 1 < count and distributed.world_size() > 1  # gradients are exchanged with the last part
            wait = self.forward.no_sync() if alone else nullcontext()
            with on_shard(shard, self.gather), wait, distributed.detecting_lost_ranks():
                logits, part = self._forward(images, targets)
                # float16 alone has a scale; in other precisions the scaler does nothing but call the optimizer
                self.scaler.scale(part / count).backward()
            losses.append(part.detach() / count)
            counts.append((logits.detach().argmax(-1) == labels).sum())
        loss, correct = sum(losses[1:], losses[0]), sum(counts[1:], counts[0])
        scale = self.scaler.scale(torch.ones_like(loss))
        if distributed.world_size() > 1:
            buffers = [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]
            loss, correct, *means = distributed.all_reduce_mean([loss, correct.to(loss.dtype), *buffers])
            torch._foreach_copy_(buffers, means)
            correct = (correct * distributed.world_size()).round()
        return loss, correct, scale

    def _forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(self.device.type, self.config.performance.precision):
            output = self.forward(images)
            logits, auxiliary = output if isinstance(output, tuple) else (output, None)
            loss = self.loss(logits, targets)
            if auxiliary is not None:
                loss = loss + self.settings.auxiliary_weight * self.loss(auxiliary, targets)
        return logits, loss

    def _parts(self) -> Iterator[tuple[Shard, Tensor, Tensor, Tensor]]:
        """Yields this process's parts of the step's batch: images, labels, and the targets of the loss."""
        step = self.counters.step
        if self.mixup is None:
            for batches in self.images.shards:
                images, labels = batches.batch(step)
                yield batches.shard, images, labels, labels
            return
        # images are mixed across the whole batch; timm draws from numpy's global generator
        images, labels = self.images.batches.batch(step)
        np.random.seed(seed_for(self.config.seed, "mixing", step) % 2**32)
        images, targets = self.mixup(images, labels)
        for shard in (batches.shard for batches in self.images.shards):
            rows = slice(shard.start, shard.stop)
            yield shard, images[rows], labels[rows], targets[rows]

    def _drop_path(self, epoch: int) -> float:
        # a hook may add steps past the last epoch
        return self.settings.drop_path * min(1.0, epoch / self.settings.epochs)

    def _lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def written(self) -> list[Tensor]:
        """Returns all tensors on the device that a step changes in place (optimizers may have a counter on the CPU)."""
        modules = [self.network] if self.ema is None else [self.network, self.ema.module]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        for state in self.optimizer.state.values():
            values = [value for value in state.values() if isinstance(value, Tensor)]
            tensors += [value for value in values if value.device.type == self.device.type]
        return [tensor.detach() for tensor in tensors]

    # --- the loop ----------------------------------------------------------------------------------------------------

    def start(self, loop: Loop) -> None:
        """Begins or goes on in a run folder: draws the network, and averages gradients over the processes."""
        self.loop = loop
        if not hasattr(self.forward, "no_sync"):  # a rollback begins again
            self.forward = average_gradients(self.forward, self.network, self.data.input_size)
        loop.folder.write_files(genotype_files(self.genotype))
        kind = self.settings
        sizes = Sizes(kind.channels, kind.layers, self.data.input_size, self.data.num_classes, kind.auxiliary)
        loop.folder.write_text("network.svg", draw_network(self.genotype, sizes))

    def done(self) -> bool:
        """Returns whether all steps are done."""
        return self.counters.step >= self.total_steps

    def log_step(self, loss: Tensor, seconds: float) -> None:
        """Shows the running means, on the CPU always, and every `logging.every_steps` steps the step in TensorBoard."""
        step = self.counters.step
        due = step % self.config.logging.every_steps == 0
        if self.device.type != "cpu" and not due:
            return
        read = self.guard.read({**self.sums, "step/train_loss": loss})
        count = (step - 1) % self.epoch_steps + 1
        accuracy = f"{100 * read['correct'] / (count * self.settings.batch_size):.2f} %"
        self.loop.progress.update(step, loss=read["loss"] / count, training_accuracy=accuracy)
        if due:
            self.loop.log(self, {"step/train_loss": read["step/train_loss"], "step/lr": self._lr()})

    def replay_log(self) -> None:
        """There is nothing besides the counters' `logged`."""

    def end_epoch(self) -> tuple[dict[str, Any], bool]:
        """Evaluates if that is due, writes the epoch's row, and moves the schedule."""
        distributed.check_equal({"weights, momentum and running statistics": self.written()})
        epoch, last = self.counters.epochs, self.counters.step >= self.total_steps
        steps = (self.counters.step - 1) % self.epoch_steps + 1
        row: dict[str, Any] = {
            "epoch": epoch,
            "train_loss": self.sums["loss"].item() / steps,
            "train_accuracy": self.sums["correct"].item() / (steps * self.settings.batch_size),
        }
        accuracies = self._evaluate_epoch(epoch, last)
        row |= accuracies | {"lr": self._lr(), "drop_path": self._drop_path(epoch)}
        if epoch == 0:
            self.loop.monitor.layout(board_layout(row))
        self.loop.log(self, {f"epoch/{n}": v for n, v in row.items() if n != "epoch" and v is not None})
        self.loop.monitor.epoch(row | {"wall_seconds": self.counters.seconds})
        self.scheduler.step(epoch + 1)
        self.sums = self._zeros()
        self._print_epoch(row)
        reached = accuracies.get("validation_accuracy")
        if reached is None:
            return row, last
        best = reached > self.counters.best
        self.counters.best = max(self.counters.best, reached)
        return row, best

    def _evaluate_epoch(self, epoch: int, last: bool) -> dict[str, float | None]:
        """Returns loss and accuracy on the validation images, or, every so often and at the end, on the test images."""
        every = self.settings.evaluate_every
        if self.images.validation is not None:
            found = self._evaluate("validation", self.images.validation)
            return {
                "validation_loss": found.loss,
                "validation_accuracy": found.accuracy,
                "test_loss": None,
                "test_accuracy": None,
            }
        if not last and not (every and (epoch + 1) % every == 0):
            return {"test_loss": None, "test_accuracy": None}
        found = self._evaluate("test", self.images.test)  # for the curve; nothing is chosen by it
        return {"test_loss": found.loss, "test_accuracy": found.accuracy}

    def _evaluate(self, name: str, part: Part, worst: int = 0, load: bool = False) -> Evaluation:
        """Returns the evaluation of the weights, on all ranks; with `load` of those of best.pt."""

        def work() -> Evaluation:
            if load:
                load_weights(self.trained, self.loop.folder.path)
            return evaluate_model(
                self.trained,
                part,
                self.data.num_classes,
                channels_last=self.config.performance.channels_last,
                check_stop=self.loop.stop.check,
                worst=worst,
            )

        return self.loop.evaluate(self, name, len(part), work)

    def _print_epoch(self, row: dict[str, Any]) -> None:
        test = row["test_accuracy"]
        self.loop.progress.line(
            f"epoch {row['epoch'] + 1}/{self.settings.epochs}  loss {row['train_loss']:.3f}  "
            f"training accuracy {100 * row['train_accuracy']:.2f} %"
            + ("" if test is None else f"  test accuracy {100 * test:.2f} %")
        )

    def finish(self) -> RetrainResult:
        """Measures the reported weights on the test images and returns the result."""
        begin, loop = time.monotonic(), self.loop
        test = self._evaluate("test", self.images.test, worst=WORST_IMAGES, load=self.images.validation is not None)
        self._draw_worst(test)
        self.counters.seconds += time.monotonic() - begin
        loop.folder.write_files({"evaluation.json": EvaluateResult("test", test, self.data.classes).file()})
        auxiliary = parameter_count(self.network.auxiliary) if self.network.auxiliary is not None else 0
        result = RetrainResult(
            digest=self.genotype.digest(),
            parameters=parameter_count(self.network) - auxiliary,
            macs=multiply_adds(self.network, self.data.input_size),
            epochs=self.settings.epochs,
            seed=self.config.seed,
            wall_seconds=self.counters.seconds,
            peak_memory_bytes=peak_memory_bytes(self.device),
            test_accuracy=test.accuracy,
        )
        metrics = {"test_accuracy": test.accuracy, "parameters": result.parameters}
        log_hparams(loop.monitor, self.config, "retrain", result.digest, metrics, self.counters.step)
        return result

    def _draw_worst(self, test: Evaluation) -> None:
        """Draws the misclassified test images of the highest loss, or removes an older drawing if there are none."""
        folder = self.loop.folder
        if not test.worst:
            if not folder.silent:
                (folder.path / WORST_FILE).unlink(missing_ok=True)
            return
        names, images = self.data.classes, self.data.test.pixels
        captions = [f"{names[m.true]}\n{names[m.predicted]}, {100 * m.confidence:.0f} %" for m in test.worst]
        pixels = images[torch.tensor([m.image for m in test.worst], device=images.device)]
        folder.write_files({WORST_FILE: contact_sheet(pixels, captions)})

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of network, optimizer, moving average and scaler, and the sums."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self.sums,
        }

    def load_state_dict(self, payload: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._build_optimizer()
        self.network.load_state_dict(payload["model"])
        self.optimizer.load_state_dict(payload["optimizer"])
        if payload["scaler"]:
            self.scaler.load_state_dict(payload["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(payload["ema"])
        self.sums = {name: value.to(self.device) for name, value in payload["sums"].items()}
        self.scheduler.step(self.counters.epochs)
