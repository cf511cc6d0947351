"""The retraining stage: train the network of a genotype from scratch, then measure it once on the test images."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas_moreau import distributed
from nas_moreau.architecture import Genotype, Network, load_space, multiply_adds, parameter_count
from nas_moreau.architecture.networks.batch_norm import synchronise
from nas_moreau.architecture.networks.batch_shard import Share, sharing
from nas_moreau.architecture.networks.skeleton import check_images
from nas_moreau.config import Config
from nas_moreau.data import Augment, Data, Part, describe_data, load_images, seed_for, stratified_split
from nas_moreau.data.batches import Batches
from nas_moreau.drawing.contact_sheet import contact_sheet
from nas_moreau.drawing.genotype_files import genotype_files
from nas_moreau.drawing.network import Sizes, draw_network
from nas_moreau.errors import InputError
from nas_moreau.runs import Monitor, Progress, RunFolder
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.runs.columns import board_layout
from nas_moreau.runs.folder import WORST_FILE
from nas_moreau.training.device import (
    autocast,
    average_gradients,
    peak_memory_bytes,
    set_up_device,
    torch_settings_restored,
)
from nas_moreau.training.evaluate import Evaluation, detail, evaluate_model, evaluation_result
from nas_moreau.training.finite_guard import FiniteGuard
from nas_moreau.training.hyperparameters import show_outcome
from nas_moreau.training.loop import show, take_steps
from nas_moreau.training.recipe import build_network, build_optimizer, training_loss
from nas_moreau.training.resume import load_weights, restore, save, with_rollbacks
from nas_moreau.training.shared_folder import finished_result, open_folder
from nas_moreau.training.signals import Abandoned, StopRequest

WORST_IMAGES = 20
"""So many misclassified test images are drawn for the report."""


@torch_settings_restored()
def retrain(
    config: Config,
    genotype: Genotype,
    output: str | PathLike[str],
    resume: bool = False,
    data: Data | None = None,
) -> dict[str, Any]:
    """Retrains and returns the result, as it stands in result.json (digest, parameters, ..., test_accuracy).

    No choice is made by the test images: the last epoch's weights are reported, or, where `retrain.validation` sets
    some training images aside, those of the best epoch on them.

    Args:
        config: The `retrain` section and what it needs.
        genotype: The cells.
        output: Run folder; a missing or empty one, or one to resume.
        resume: Go on from the last checkpoint.
        data: The images, if they are loaded already.

    Raises:
        InputError: Something handed in cannot be used; nothing was written.
        NonFinite: The loss became NaN or infinite.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """

    def plan() -> _Retraining:
        return plan_retraining(config, genotype, load_images(config) if data is None else data)

    job = distributed.together(plan)
    with open_folder(output, config.to_dict() | {"genotype": genotype.digest()}, "retrain", resume) as folder:
        if folder.finished:
            return finished_result(folder)
        return job.run(folder)


def plan_retraining(config: Config, genotype: Genotype, data: Data) -> _Retraining:
    """Returns the retraining, ready to run; all that cannot be used is refused here.

    Raises:
        InputError: Something handed in cannot be used.
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
    device = set_up_device(config)
    network = build_network(config, genotype, data.num_classes, data.channels)
    check_images(torch.empty((1, *data.input_size), device="meta"), network)
    return _Retraining(config, genotype, network, data, device)


class _Retraining:
    """One retraining in progress."""

    folder: RunFolder
    stop: StopRequest
    forward: Any  # the network, compiled and shared by processes where that is asked for
    sums: dict[str, Tensor]
    shown: dict[str, Any]

    def __init__(self, config: Config, genotype: Genotype, network: Network, data: Data, device: torch.device):
        self.config, self.settings, self.genotype = config, config.retrain, genotype
        self.device, self.data = device, data.to(device)
        self.channels_last = config.performance.channels_last
        self.augment = Augment(data.mean, data.std, **self.settings.augment.model_dump())
        labels = self.data.train.labels
        parts = {"train": torch.arange(len(labels), device=device)}
        if self.settings.validation:
            share = self.settings.validation
            parts = stratified_split(labels, {"train": 1 - share, "validation": share}, config.seed)
        train = {name: Part(self.data.train, indices, self.augment) for name, indices in parts.items()}
        self.validation, self.test = train.get("validation"), Part.whole(self.data.test, self.augment)
        self.batches = Batches(
            train["train"], self.settings.batch_size, config.seed, "retraining", channels_last=self.channels_last
        )
        size = self.settings.batch_size
        gather = distributed.gathered if config.distributed.sync_batchnorm and distributed.processes() > 1 else None
        self.shares = [Share(*rows, size, gather) for rows in distributed.own_rows(size, self.settings.accumulate)]
        self.shards = [self.batches.shard((share.start, share.stop)) for share in self.shares]
        self.epoch_steps = self.settings.steps_per_epoch or len(self.batches)
        self.total_steps = self.epoch_steps * self.settings.epochs
        self.space = load_space(config.space)
        self._build(network.to(device))

    def _build(self, network: Network) -> None:
        from timm.utils import ModelEmaV3

        settings = self.settings
        self.network = network.to(memory_format=torch.channels_last) if self.channels_last else network
        self.network.checkpointing = self.config.performance.activation_checkpointing
        self.network.train()
        if self.shares[0].gather:
            synchronise(self.network)
        self.forward = torch.compile(network) if self.config.performance.compile else network
        self._build_optimizer(0)
        self.loss, self.mixup = training_loss(settings, self.data.num_classes)
        half = self.config.performance.precision == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.ema = ModelEmaV3(network, settings.ema) if settings.ema else None
        self.step, self.seconds, self.evaluating, self.best = 0, 0.0, 0.0, -1.0
        self.sums, self.shown, self.epoch_done = self._zeros(), {}, True

    def _build_optimizer(self, rollbacks: int) -> None:
        """Makes optimizer and schedule, the learning rate halved as often as the run was rolled back."""
        self.rollbacks = rollbacks
        self.optimizer, self.scheduler = build_optimizer(self.network, self.settings, 0.5**rollbacks)

    def _zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros((), dtype=torch.float64, device=self.device) for name in ("loss", "correct")}

    @property
    def trained(self) -> nn.Module:
        """The network whose accuracy counts: the moving average where there is one."""
        return self.network if self.ema is None else self.ema.module

    def run(self, folder: RunFolder) -> dict[str, Any]:
        """Runs all steps that are left in `folder` and returns the result."""
        self.folder = folder
        folder.write_data(describe_data(self.data))
        self.forward = average_gradients(self.forward, self.network, self.data.input_size)
        return with_rollbacks(folder, self.config.checkpoint.on_nonfinite == "rollback", self._run)

    def _run(self) -> dict[str, Any]:
        resumed = restore(self.folder, self.space, self._put_back)
        self.guard = FiniteGuard("retrain", self.device, lambda step: self._lr())
        self.folder.write_files(genotype_files(self.genotype))
        kind = self.settings
        sizes = Sizes(kind.channels, kind.layers, self.data.input_size, self.data.num_classes, kind.auxiliary)
        self.folder.write_text("network.svg", draw_network(self.genotype, sizes))
        # a signal came while the last epoch was evaluated: it has not been finished
        due = resumed is not None and self.step % self.epoch_steps == 0 and not self.epoch_done
        return take_steps(self, resumed, due)

    def over(self) -> bool:
        """Returns whether all steps are done."""
        return self.step >= self.total_steps

    def advance(self) -> Tensor:
        """Does one step of training and returns its loss."""
        self.network.drop_path = self._drop_path(self.step // self.epoch_steps)
        self.guard.before(self._written)
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct, scale = self._accumulate()
        self.scaler.unscale_(self.optimizer)
        # an infinite clip changes nothing and still gives the norm
        clip = float("inf") if self.settings.clip is None else self.settings.clip
        gradient = nn.utils.clip_grad_norm_(self.network.parameters(), clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.network, self.step)
        # infinite gradients are a fault where the scale cannot be the reason
        terms = {"loss": loss, "gradient": torch.where(scale > 1, torch.zeros_like(gradient), gradient)}
        self.guard.after(self.step, terms, {"weights, momentum and running statistics": self._written()})
        self.sums["loss"] += loss
        self.sums["correct"] += correct
        return loss

    def _accumulate(self) -> tuple[Tensor, Tensor, Tensor]:
        """Adds up the gradients of the batch's parts.

        Returns:
            The whole batch's loss and count of right answers, and the scale of the gradients.
        """
        parts, losses, counts = len(self.shares), [], []
        for place, (share, images, labels, targets) in enumerate(self._parts()):
            # drop-path and dropout draw from the global generator: tied to the step, so that a resumed run repeats
            torch.manual_seed(seed_for(self.config.seed, "step of retraining", self.step))
            alone = place + 1 < parts and distributed.processes() > 1  # gradients are exchanged with the last part
            with sharing(share), self.forward.no_sync() if alone else nullcontext(), distributed.noticing_loss():
                with autocast(self.device.type, self.config.performance.precision):
                    output = self.forward(images)
                    logits, auxiliary = output if isinstance(output, tuple) else (output, None)
                    loss = self.loss(logits, targets)
                    if auxiliary is not None:
                        loss = loss + self.settings.auxiliary_weight * self.loss(auxiliary, targets)
                # float16 alone has a scale; in other precisions the scaler does nothing but call the optimizer
                self.scaler.scale(loss / parts).backward()
            losses.append(loss.detach() / parts)
            counts.append((logits.detach().argmax(-1) == labels).sum())
        loss, correct, scale = sum(losses), sum(counts), self.scaler.scale(torch.ones_like(losses[0]))
        if distributed.processes() > 1:
            buffers = [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]
            loss, correct, *means = distributed.averaged([loss, correct.to(loss.dtype), *buffers])
            torch._foreach_copy_(buffers, means)
            correct = (correct * distributed.processes()).round()
        return loss, correct, scale

    def _parts(self) -> Iterator[tuple[Share, Tensor, Tensor, Tensor]]:
        """Yields this process's parts of the step's batch: images, labels, and what the loss compares with."""
        if self.mixup is None:
            for share, batches in zip(self.shares, self.shards):
                images, labels = batches.batch(self.step)
                yield share, images, labels, labels
            return
        # images are mixed across the whole batch; timm draws from numpy's global generator
        images, labels = self.batches.batch(self.step)
        np.random.seed(seed_for(self.config.seed, "mixing", self.step) % 2**32)
        images, targets = self.mixup(images, labels)
        for share in self.shares:
            rows = slice(share.start, share.stop)
            yield share, images[rows], labels[rows], targets[rows]

    def _drop_path(self, epoch: int) -> float:
        # `plan` may try steps past the last epoch
        return self.settings.drop_path * min(1.0, epoch / self.settings.epochs)

    def _lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def _written(self) -> list[Tensor]:
        """Returns all tensors on the device that a step writes into (some optimizers keep a counter on the CPU)."""
        modules = [self.network] if self.ema is None else [self.network, self.ema.module]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        for state in self.optimizer.state.values():
            values = [value for value in state.values() if isinstance(value, Tensor)]
            tensors += [value for value in values if value.device.type == self.device.type]
        return [tensor.detach() for tensor in tensors]

    def look(self, monitor: Monitor, progress: Progress, loss: Tensor, seconds: float) -> None:
        """Shows the running means, on the CPU always, and every now and then the step in TensorBoard."""
        due = self.step % self.config.logging.every_steps == 0
        if self.device.type != "cpu" and not due:
            return
        read = self.guard.read({**self.sums, "step/train_loss": loss})
        count = (self.step - 1) % self.epoch_steps + 1
        accuracy = f"{100 * read['correct'] / (count * self.settings.batch_size):.2f} %"
        progress.update(self.step, loss=read["loss"] / count, training_accuracy=accuracy)
        if due:
            show(self, monitor, {"step/train_loss": read["step/train_loss"], "step/lr": self._lr()})

    def show_again(self, monitor: Monitor) -> None:
        """Shows what the last step before a stop had shown."""
        monitor.scalars(self.shown, self.step)

    def finish_epoch(self, monitor: Monitor, progress: Progress) -> None:
        """Evaluates where that is due, writes the epoch's row, moves the schedule, saves."""
        distributed.check_equal({"weights, momentum and running statistics": self._written()})
        epoch = self.step // self.epoch_steps - 1
        last = self.step == self.total_steps
        due = last or (self.settings.evaluate_every and (epoch + 1) % self.settings.evaluate_every == 0)
        row: dict[str, Any] = {
            "epoch": epoch,
            "train_loss": self.sums["loss"].item() / self.epoch_steps,
            "train_accuracy": self.sums["correct"].item() / (self.epoch_steps * self.settings.batch_size),
        }
        better, self.epoch_done = False, False
        try:
            found = test = None
            if self.validation is not None:
                found = distributed.on_first(lambda: self._evaluate(self.validation))
            elif due:  # a curve to look at; nothing is chosen by it
                test = distributed.on_first(lambda: self._evaluate(self.test))
        except Abandoned:
            self.save(monitor)
            raise
        if found:
            row |= {"validation_loss": found.loss, "validation_accuracy": found.accuracy}
            better = found.accuracy > self.best
            self.best = max(self.best, found.accuracy)
        row |= {"test_loss": test.loss if test else None, "test_accuracy": test.accuracy if test else None}
        row |= {"lr": self._lr(), "drop_path": self._drop_path(epoch)}
        if epoch == 0:
            monitor.layout(board_layout(row))
        show(self, monitor, {f"epoch/{n}": v for n, v in row.items() if n != "epoch" and v is not None})
        monitor.epoch(row | {"wall_seconds": self.seconds})
        self.scheduler.step(epoch + 1)
        self.sums, self.epoch_done = self._zeros(), True
        self.save(monitor, best=better or (last and self.validation is None))
        accuracy = f"  test accuracy {100 * test.accuracy:.2f} %" if test else ""
        progress.line(
            f"epoch {epoch + 1}/{self.settings.epochs}  loss {row['train_loss']:.3f}  "
            f"training accuracy {100 * row['train_accuracy']:.2f} %{accuracy}"
        )

    def _evaluate(self, part: Part, worst: int = 0) -> Evaluation:
        before = time.monotonic()
        found = evaluate_model(
            self.trained,
            part,
            self.data.num_classes,
            channels_last=self.channels_last,
            give_up=self.stop.give_up,
            worst=worst,
        )
        self.evaluating += time.monotonic() - before
        return found

    def _write_mistakes(self, test: Evaluation) -> None:
        """Draws the images that the network is most wrong about; what an earlier run of the folder drew goes."""
        target = self.folder.path / WORST_FILE
        if not test.worst:
            target.unlink(missing_ok=True)
            return
        names = self.data.classes
        captions = [f"{names[m.true]}\n{names[m.predicted]}, {100 * m.confidence:.0f} %" for m in test.worst]
        pixels = self.data.test.pixels[torch.tensor([m.image for m in test.worst], device=self.data.test.pixels.device)]
        write_atomic(target, contact_sheet(pixels, captions))

    def finish(self, monitor: Monitor) -> dict[str, Any]:
        before = time.monotonic()
        if self.validation is not None:
            load_weights(self.trained, self.folder.path)
        test = self._evaluate(self.test, worst=WORST_IMAGES)
        self._write_mistakes(test)
        self.seconds += time.monotonic() - before
        self.folder.write_text(
            "evaluation.json", json.dumps(evaluation_result("test", test) | detail(test, self.data.classes), indent=1)
        )
        auxiliary = parameter_count(self.network.auxiliary) if self.network.auxiliary is not None else 0
        result = {
            "digest": self.genotype.digest(),
            "parameters": parameter_count(self.network) - auxiliary,
            "macs": multiply_adds(self.network, self.data.input_size),
            "epochs": self.settings.epochs, "seed": self.config.seed, "wall_seconds": self.seconds,
            "peak_memory_bytes": peak_memory_bytes(self.device), "test_accuracy": test.accuracy,
        }  # fmt: skip
        show_outcome(
            monitor, self.config, "retrain", result["digest"], self.step, test_accuracy=test.accuracy,
            parameters=result["parameters"],
        )  # fmt: skip
        self.folder.write_result(result)
        self.folder.status("finished", step=self.step, evaluation_seconds=self.evaluating)
        self.folder.log(f"retrain: finished with test accuracy {test.accuracy:.4f}")
        return result

    def save(self, monitor: Monitor, best: bool = False) -> None:
        self.guard.read()
        monitor.flush()
        payload = {
            "stage": "retrain", "step": self.step, "seconds": self.seconds, "best": self.best, "sums": self.sums,
            "evaluating": self.evaluating, "rollbacks": self.rollbacks, "epoch_done": self.epoch_done,
            "shown": self.shown,
            "model": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "scaler": self.scaler.state_dict(),
        }  # fmt: skip
        save(self.folder, self.space, payload, best)

    def _put_back(self, payload: dict[str, Any]) -> None:
        self._build_optimizer(payload.get("rollbacks", 0))
        self.shown, self.epoch_done = payload.get("shown", {}), payload.get("epoch_done", True)
        self.step, self.seconds, self.best = payload["step"], payload["seconds"], payload["best"]
        self.evaluating = payload.get("evaluating", 0.0)
        self.network.load_state_dict(payload["model"])
        self.optimizer.load_state_dict(payload["optimizer"])
        if payload.get("scaler"):
            self.scaler.load_state_dict(payload["scaler"])
        self.sums = {name: value.to(self.device) for name, value in payload["sums"].items()}
        if self.ema is not None:
            self.ema.module.load_state_dict(payload["ema"])
        self.scheduler.step(self.step // self.epoch_steps - (not self.epoch_done))
