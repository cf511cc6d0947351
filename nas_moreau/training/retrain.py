"""The retraining stage: train the network of a genotype from scratch, then measure it once on the test images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from nas_moreau import distributed
from nas_moreau.architecture import Genotype, Network, load_space, multiply_adds, parameter_count
from nas_moreau.architecture.networks.skeleton import check_images
from nas_moreau.config import Config
from nas_moreau.data import Data, Part, describe_data, load_images
from nas_moreau.data.batches import retraining_images
from nas_moreau.drawing.cell import genotype_files
from nas_moreau.drawing.contact_sheet import contact_sheet
from nas_moreau.drawing.network import Sizes, draw_network
from nas_moreau.errors import InputError
from nas_moreau.runs.board import board_layout
from nas_moreau.runs.folder import WORST_FILE
from nas_moreau.runs.identity import Identity
from nas_moreau.runs.own_checkpoints import tensors_digest
from nas_moreau.training.capture import NOT_REPLAYED
from nas_moreau.training.device import (
    peak_memory_bytes,
    set_up_device,
    torch_settings_restored,
)
from nas_moreau.training.evaluate import EvaluateResult, Evaluation, evaluate_model
from nas_moreau.training.finite_guard import FiniteGuard
from nas_moreau.training.hparams import log_hparams
from nas_moreau.training.loop import Hook, Loop, LoopSettings, run
from nas_moreau.training.pictures import log_confusion, log_network, log_training_images
from nas_moreau.training.recipe import build_network, build_optimizer
from nas_moreau.training.resume import Counters, load_weights
from nas_moreau.training.trainer import Trainer

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


class RetrainJob:
    """A retraining: its trainer and images, and what the training loop asks of it (`training.loop.Job`).

    Attributes:
        counters: Steps, epochs and seconds done.
        trainer: The network and its optimizer.
        images: Batches to train on, and what to evaluate on.
        sums: Loss and correct predictions since the last epoch.
        guard: Looks for NaN and infinity.
        loop: Folder, monitor and terminal, while it runs.
    """

    name = "retrain"
    loop: Loop

    def __init__(self, config: Config, genotype: Genotype, network: Network, data: Data, device: torch.device):
        self.config, self.settings, self.genotype, self.device = config, config.retrain, genotype, device
        self.description = describe_data(data)
        space = load_space(config.space)
        self.identity: Identity = {"images": data.digest, "space": space.digest(), "genotype": genotype.digest()}
        self.data = data.to(device)
        self.images = retraining_images(config, self.data)
        self.epoch_steps = self.settings.steps_per_epoch or len(self.images.batches)
        self.total_steps, self.samples = self.epoch_steps * self.settings.epochs, self.settings.batch_size
        self.loop_settings, self.counters = LoopSettings.of(config), Counters()
        self.trainer = Trainer(config, network, data.num_classes, device)
        self.guard, self.sums = self._guard(), self._zeros()

    @property
    def about(self) -> str:
        """Cell and sizes."""
        sizes = f"{self.settings.channels} channels, {self.settings.layers} layers"
        return f"cell {self.genotype.digest()}, {sizes}, batch {self.settings.batch_size}"

    def _guard(self) -> FiniteGuard:
        return FiniteGuard(self.name, self.device, lambda step: self.trainer.lr)

    def _zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros((), dtype=torch.float64, device=self.device) for name in ("loss", "correct")}

    def run(self, output: str | PathLike[str], resume: bool = False, hooks: Sequence[Hook] = ()) -> RetrainResult:
        """Runs what is left in the run folder and returns the result; see `retrain`."""
        config = self.config.to_dict() | {"genotype": self.genotype.digest()}
        return run(self, "retrain", config, output, resume, hooks, RetrainResult.from_dict)

    def start(self, loop: Loop) -> None:
        """Begins or resumes in a run folder: draws the network, and averages gradients over the processes."""
        self.loop, settings = loop, self.settings
        self.trainer.average_gradients(self.data.input_size)
        self.trainer.note = lambda text: loop.say(f"retrain: {text}")
        if self.trainer.obstacle:
            self.trainer.note(f"{NOT_REPLAYED}: {self.trainer.obstacle}")
        loop.folder.write_files(genotype_files(self.genotype))
        shape = self.data.input_size, self.data.num_classes
        sizes = Sizes(settings.channels, settings.layers, *shape, settings.auxiliary)
        loop.folder.write_text("network.svg", draw_network(self.genotype, sizes))
        if self.counters.step == 0:
            log_training_images(loop.monitor, self.images.batches, self.data.classes, 0)
            log_network(loop.monitor, self.genotype, sizes)

    def done(self) -> bool:
        """Returns whether all steps are done."""
        return self.counters.step >= self.total_steps

    def train_step(self) -> Tensor:
        """Does one step of training and returns its loss."""
        step, trainer = self.counters.step, self.trainer
        self.guard.before(trainer.written)
        numbers = trainer.step(self.images, step, self._drop_path(step // self.epoch_steps))
        self.counters.step += 1
        terms = {"loss": numbers.loss, "gradient": numbers.gradient}
        self.guard.after(step + 1, terms, {"weights, momentum and running statistics": trainer.written()})
        self.sums["loss"] += numbers.loss
        self.sums["correct"] += numbers.correct
        return numbers.loss

    def _drop_path(self, epoch: int) -> float:
        # a hook may add steps past the last epoch
        return self.settings.drop_path * min(1.0, epoch / self.settings.epochs)

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
            self.loop.log(self, {"step/train_loss": read["step/train_loss"], "step/lr": self.trainer.lr})

    def replay_log(self) -> None:
        """Logs nothing: the counters' `logged` is all."""

    def end_epoch(self) -> tuple[dict[str, Any], bool]:
        """Evaluates if that is due, writes the epoch's row, and moves the schedule."""
        distributed.check_equal({"weights, momentum and running statistics": self.trainer.written()})
        epoch, last = self.counters.epochs, self.counters.step >= self.total_steps
        steps = (self.counters.step - 1) % self.epoch_steps + 1
        row: dict[str, Any] = {
            "epoch": epoch,
            "train_loss": self.sums["loss"].item() / steps,
            "train_accuracy": self.sums["correct"].item() / (steps * self.settings.batch_size),
        }
        accuracies = self._evaluate_epoch(epoch, last)
        row |= accuracies | {"lr": self.trainer.lr, "drop_path": self._drop_path(epoch)}
        if epoch == 0:
            self.loop.monitor.layout(board_layout(row))
        self.loop.log_epoch(self, row)
        self.loop.monitor.epoch(row | {"wall_seconds": self.counters.seconds})
        self.trainer.scheduler.step(epoch + 1)
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
                load_weights(self.trainer.trained, self.loop.folder.path)
            return evaluate_model(
                self.trainer.trained,
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
        log_confusion(loop.monitor, test.confusion, self.data.classes, self.counters.step)
        self.counters.seconds += time.monotonic() - begin
        loop.folder.write_files({"evaluation.json": EvaluateResult("test", test, self.data.classes).file()})
        network = self.trainer.network
        auxiliary = parameter_count(network.auxiliary) if network.auxiliary is not None else 0
        result = RetrainResult(
            digest=self.genotype.digest(),
            parameters=parameter_count(network) - auxiliary,
            macs=multiply_adds(network, self.data.input_size),
            epochs=self.settings.epochs,
            seed=self.config.seed,
            wall_seconds=self.counters.seconds,
            peak_memory_bytes=peak_memory_bytes(self.device),
            test_accuracy=test.accuracy,
        )
        metrics = {"test_accuracy": test.accuracy, "parameters": result.parameters}
        if not loop.folder.within_run:
            log_hparams(loop.monitor, self.config, "retrain", result.digest, metrics, self.counters.step)
        return result

    def reported_weights(self) -> str | None:
        """Returns the digest of the weights in best.pt."""
        return tensors_digest(self.trainer.trained.state_dict().items())

    def _draw_worst(self, test: Evaluation) -> None:
        """Draws the misclassified test images of the highest loss, or removes an older drawing if there are none."""
        folder = self.loop.folder
        if not test.worst:
            folder.remove_file(WORST_FILE)
            return
        names, images = self.data.classes, self.data.test.pixels
        captions = [f"{names[m.true]}\n{names[m.predicted]}, {100 * m.confidence:.0f} %" for m in test.worst]
        pixels = images[torch.tensor([m.image for m in test.worst], device=images.device)]
        sheet = contact_sheet(pixels, captions)
        folder.write_files({WORST_FILE: sheet})
        self.loop.monitor.image("errors/worst_images", sheet, self.counters.step)

    def state_dict(self) -> dict[str, Any]:
        """Returns the trainer's state and the sums."""
        return {**self.trainer.state_dict(), "sums": self.sums}

    def load_state_dict(self, payload: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the learning rate is halved as often as the run was rolled back."""
        self.trainer.build_optimizer(0.5**self.counters.rollbacks)
        self.guard = self._guard()
        self.trainer.load_state_dict(payload)
        self.sums = {name: value.to(self.device) for name, value in payload["sums"].items()}
        self.trainer.scheduler.step(self.counters.epochs)
