"""The network of a retraining with its optimizer: one step on a batch, in parts and on several processes if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nas_moreau import distributed
from nas_moreau.architecture import Network
from nas_moreau.architecture.networks.batch_norm import synchronise
from nas_moreau.architecture.networks.batch_shard import on_shard
from nas_moreau.config import Config
from nas_moreau.data import seed_for
from nas_moreau.data.batches import RetrainImages
from nas_moreau.distributed import Shard
from nas_moreau.training.capture import CapturedStep, choose_recorder
from nas_moreau.training.device import autocast, average_gradients, batchnorm_gather
from nas_moreau.training.recipe import build_optimizer, training_loss
from nas_moreau.training.resume import check_like


class StepNumbers(NamedTuple):
    """Numbers of a step, 0-dim tensors of the whole batch.

    Attributes:
        loss: The loss.
        correct: Number of correct predictions.
        gradient: Norm of the gradient before clipping; 0 if it overflowed only because of the scale of float16.
    """

    loss: Tensor
    correct: Tensor
    gradient: Tensor


class Trainer:
    """Everything that a step of retraining changes.

    Args:
        config: The sections `retrain`, `performance` and `distributed`, and the seed.
        network: With initial weights.
        num_classes: Number of classes.
        device: Where to train.

    Attributes:
        network: The network; `forward` is it, compiled and with averaged gradients where that is configured.
        ema: timm's moving average of the weights, or None.
        optimizer, scheduler, scaler: timm's and torch's.
        loss, mixup: timm's loss, and its Mixup or None.
        note: Called with a sentence when the steps of an epoch are recorded for the first time, or cannot be.
    """

    def __init__(self, config: Config, network: Network, num_classes: int, device: torch.device):
        from timm.utils import ModelEmaV3

        self.config, self.settings, self.device = config, config.retrain, device
        performance = config.performance
        network = network.to(device)
        self.network = network.to(memory_format=torch.channels_last) if performance.channels_last else network
        self.network.checkpointing = performance.activation_checkpointing
        self.network.train()
        self.gather = batchnorm_gather(config)
        if self.gather is not None:
            synchronise(self.network)
        self.forward: Any = torch.compile(network) if performance.compile else network
        self.loss, self.mixup = training_loss(self.settings, num_classes)
        self.scaler = torch.amp.GradScaler(device.type, enabled=performance.precision == "float16")
        self.ema = ModelEmaV3(network, self.settings.ema) if self.settings.ema else None
        self.note: Callable[[str], None] = lambda text: None
        self.build_optimizer(1.0)
        self.record, self.obstacle = choose_recorder(performance, device, self._obstacle())

    def build_optimizer(self, factor: float) -> None:
        """Makes optimizer and schedule, the learning rate multiplied by `factor`."""
        self.optimizer, self.scheduler = build_optimizer(self.network, self.settings, factor)
        self._captured: tuple[Any, CapturedStep] | None = None

    def _obstacle(self) -> str | None:
        """Returns why a step cannot be recorded, None if it can."""
        if self.config.performance.precision == "float16":
            return "the loss scale of float16 waits for the device"
        if type(self.optimizer) is not torch.optim.SGD:
            return f"the optimizer {self.settings.optimizer} counts its steps"
        return "a batch is computed in parts" if self.settings.accumulate > 1 else None

    def average_gradients(self, image: tuple[int, int, int]) -> None:
        """From now on gradients are means over all processes; repeated calls change nothing."""
        if not hasattr(self.forward, "no_sync"):
            self.forward = average_gradients(self.forward, self.network, image)

    @property
    def trained(self) -> nn.Module:
        """The network whose accuracy counts: the moving average if there is one."""
        return self.network if self.ema is None else self.ema.module

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, images: RetrainImages, step: int, drop_path: float) -> StepNumbers:
        """Does one step.

        Args:
            images: The batches.
            step: Its number, counted from 0.
            drop_path: Probability of dropping a path.
        """
        self.network.drop_path, self._number = drop_path, step
        parts = self._parts(images, step)
        if self.record is None:
            return self._step(parts, len(images.shards), lambda: self._seed(step))
        ((shard, *tensors),) = parts

        def recordable(state: tuple[()], tensors: list[Tensor]) -> tuple[tuple[()], StepNumbers]:
            return state, self._step([(shard, *tensors)], 1, lambda: None)

        # learning rate and drop-path are constants of a recording: both change with the epoch
        constants = self.lr, drop_path
        if self._captured is None or self._captured[0] != constants:
            first, self._captured = self._captured is None, None  # the old recording's memory goes first
            note = self.note if first else lambda text: None
            self._captured = constants, CapturedStep(recordable, self.device, self.record, note)
        self._seed(step)  # not within the recording: a replay draws by the seed that is set before it
        return self._captured[1]((), tensors)[1]

    def _seed(self, step: int) -> None:
        """Ties what drop-path and dropout draw from the global generator to the step, so that a resumed run repeats."""
        torch.manual_seed(seed_for(self.config.seed, "step of retraining", step))

    def _step(self, parts: Iterable[Any], count: int, seed: Callable[[], None]) -> StepNumbers:
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct, scale = self._accumulate(parts, count, seed)
        self.scaler.unscale_(self.optimizer)
        # an infinite clip changes nothing and still gives the norm
        clip = float("inf") if self.settings.clip is None else self.settings.clip
        gradient = nn.utils.clip_grad_norm_(self.network.parameters(), clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            # a number that counts in the very first step alone, which is not recorded
            self.ema.update(self.network, self._number + 1)
        # infinite gradients are a fault if the scale cannot be the reason
        return StepNumbers(loss, correct, torch.where(scale > 1, torch.zeros_like(gradient), gradient))

    def _accumulate(self, parts: Iterable[Any], count: int, seed: Callable[[], None]) -> tuple[Tensor, Tensor, Tensor]:
        """Adds up the gradients of the batch's parts.

        Returns:
            The whole batch's loss and number of correct predictions, and the scale of the gradients.
        """
        losses, counts = [], []
        for place, (shard, pixels, labels, targets) in enumerate(parts):
            seed()
            alone = place + 1 < count and distributed.world_size() > 1  # gradients are exchanged with the last part
            wait = self.forward.no_sync() if alone else nullcontext()
            with on_shard(shard, self.gather), wait, distributed.detecting_lost_ranks():
                logits, part = self._forward(pixels, targets)
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

    def _forward(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(self.device.type, self.config.performance.precision):
            output = self.forward(pixels)
            logits, auxiliary = output if isinstance(output, tuple) else (output, None)
            loss = self.loss(logits, targets)
            if auxiliary is not None:
                loss = loss + self.settings.auxiliary_weight * self.loss(auxiliary, targets)
        return logits, loss

    def _parts(self, images: RetrainImages, step: int) -> Iterator[tuple[Shard, Tensor, Tensor, Tensor]]:
        """Yields this process's parts of the step's batch: shard, images, labels, and the targets of the loss."""
        if self.mixup is None:
            for batches in images.shards:
                pixels, labels = batches.batch(step)
                yield batches.shard, pixels, labels, labels
            return
        # images are mixed across the whole batch; timm draws from numpy's global generator
        pixels, labels = images.batches.batch(step)
        np.random.seed(seed_for(self.config.seed, "mixing", step) % 2**32)
        pixels, targets = self.mixup(pixels, labels)
        for shard in (batches.shard for batches in images.shards):
            rows = slice(shard.start, shard.stop)
            yield shard, pixels[rows], labels[rows], targets[rows]

    def written(self) -> list[Tensor]:
        """Returns all tensors on the device that a step changes in place (optimizers may have a counter on the CPU)."""
        modules = [self.network] if self.ema is None else [self.network, self.ema.module]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        for state in self.optimizer.state.values():
            values = [value for value in state.values() if isinstance(value, Tensor)]
            tensors += [value for value in values if value.device.type == self.device.type]
        return [tensor.detach() for tensor in tensors]

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of network, optimizer, moving average and scaler."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, payload: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        check_like(payload["model"], self.network.state_dict())
        self.network.load_state_dict(payload["model"])
        self.optimizer.load_state_dict(payload["optimizer"])
        if payload["scaler"]:
            self.scaler.load_state_dict(payload["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(payload["ema"])
