"""The engine of every search: steps of a bilevel method within the training loop, saved and resumed exactly.

What is searched (cells of a space, choices of a module) is passed in: `Setup` poses the problem, `Subject` evaluates an
epoch and says what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any, Protocol

import torch
from torch import Tensor

from nas_moreau import distributed
from nas_moreau.architecture.networks.depthwise import trials_text
from nas_moreau.bilevel import StepSizes
from nas_moreau.bilevel.simplex_steps import Groups, mean_logits
from nas_moreau.config import Config
from nas_moreau.data import seed_for
from nas_moreau.runs.board import tag
from nas_moreau.runs.identity import Identity
from nas_moreau.search.epoch import COUNTS, step_numbers
from nas_moreau.search.held_numbers import HeldNumbers, counts_as_tensors
from nas_moreau.search.methods import build_method, parse_method
from nas_moreau.search.problem import Posed
from nas_moreau.search.schedules import smaller_steps
from nas_moreau.training.capture import NOT_REPLAYED, CapturedStep, choose_recorder, copied
from nas_moreau.training.finite_guard import FiniteGuard, tensors_in
from nas_moreau.training.loop import Hook, Loop, LoopSettings, run
from nas_moreau.training.resume import Counters, check_like, pack, unpack


class Setup(Protocol):
    """What a search works on."""

    @property
    def config(self) -> Config:
        """Method, step sizes, seed, batch size and checkpoints."""

    @property
    def device(self) -> torch.device:
        """Of all tensors."""

    @property
    def posed(self) -> Posed:
        """The bilevel problem, its start, and the running statistics of theta."""

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""

    @property
    def total_steps(self) -> int:
        """Steps of the search, all restarts together."""

    @property
    def restart_steps(self) -> int:
        """Steps after which it begins from other weights."""

    def restart(self, number: int) -> tuple[list[Tensor], list[Tensor]]:
        """Returns other initial alphas and weights; sets the running statistics to their initial values.

        Args:
            number: Of the restart, from 1.
        """

    @property
    def samples(self) -> int:
        """Samples of a step on each level."""

    def batches(self, step: int) -> tuple[Any, Any]:
        """Returns the batches of F and f at a step."""

    def buffers(self) -> list[Tensor]:
        """Returns the running statistics at y and at theta."""

    def named_buffers(self) -> dict[str, Tensor]:
        """Returns the running statistics at y."""

    def carried(self) -> list[Tensor]:
        """Returns tensors that are neither parameters nor buffers, and that a step may leave for the next one."""

    def alpha_groups(self) -> Groups:
        """Returns the entries of x that each softmax takes, for the rules that step on simplices."""

    def sharing(self) -> AbstractContextManager[Any]:
        """Returns the context of a step in which several processes share a batch."""


class Subject(Protocol):
    """What is searched: how an epoch is evaluated, and what is found.

    Attributes:
        stage: What the run folder holds.
    """

    stage: str

    @property
    def about(self) -> str:
        """What it is, for the first line on the terminal."""

    def configuration(self) -> dict[str, Any]:
        """Returns the whole configuration, plain data."""

    def result_of(self, data: Mapping[str, Any]) -> Any:
        """Returns the result that result.json holds."""

    def start(self, loop: Loop) -> None:
        """Begins or resumes in a run folder."""

    def stops(self) -> bool:
        """Returns whether the search ends before its last step."""

    def end_epoch(self, job: SearchJob) -> tuple[dict[str, Any], bool]:
        """Evaluates and writes an epoch; see `training.loop.Job.end_epoch`."""

    def replay_log(self, job: SearchJob) -> None:
        """Shows the pictures of the last epoch again."""

    def finish(self, job: SearchJob) -> Any:
        """Returns the result."""

    def state_dict(self, job: SearchJob) -> dict[str, Any]:
        """Returns what a checkpoint holds in addition to the iterates: tensors and plain values."""

    def load_state_dict(self, payload: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""


class SearchJob:
    """A search: the state of its method, and what the training loop asks of it (`training.loop.Job`).

    Args:
        setup: What it works on.
        subject: What is searched.
        description: Of the images, for data.json; None for other data.
        identity: Digests of the data and of what is searched.

    Attributes:
        counters: Steps, epochs and seconds done.
        x, y, state: Alphas, weights and the method's state.
        ended: The alphas at the end of every restart (`search.restarts`) but the present one.
        sums: Sums of the steps' numbers since the last epoch.
        c: The penalty c_k of the last step, None for methods without one.
        latest: Numbers of the last epoch, for the terminal.
        held: Step sizes in tensors, where a step is recorded; else None.
        loop: Folder, monitor and terminal, while it runs.
    """

    name = "search"
    loop: Loop

    def __init__(self, setup: Any, subject: Any, description: dict[str, Any] | None, identity: Identity):
        self.setup, self.subject, self.description, self.identity = setup, subject, description, identity
        self.epoch_steps, self.total_steps, self.samples = setup.epoch_steps, setup.total_steps, setup.samples
        self.loop_settings = LoopSettings.of(setup.config)
        self.counters = Counters()
        self._build_method()
        self.x, self.y = setup.posed.x, setup.posed.y
        self.ended: list[list[Tensor]] = []
        self._initialise_state()
        # masks of attention hold -inf from the beginning
        self._constant = [not bool(torch.isfinite(buffer).all()) for buffer in setup.buffers()]
        self.sums: dict[str, Tensor] = {}
        self.c: Any = None
        self.latest: dict[str, str] = {}

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        device: torch.device = self.setup.device
        return device

    @property
    def about(self) -> str:
        """Method and subject."""
        return f"{self.setup.config.search.method}, {self.subject.about}"

    @property
    def counted(self) -> list[Tensor]:
        """The alphas that count, from which a result is derived: those whose weights are the mean over the restarts."""
        return mean_logits([*self.ended, self.x], self.setup.alpha_groups()) if self.ended else self.x

    @property
    def own_step(self) -> int:
        """The last step, counted from 0 at the last restart."""
        return (self.counters.step - 1) % self.setup.restart_steps

    def _build_method(self) -> None:
        """Makes the method, its step sizes halved as often as the run was rolled back, and its guard."""
        setup = self.setup
        settings = smaller_steps(setup.config.search, 0.5**self.counters.rollbacks)
        obstacle = None if parse_method(settings.method).is_capturable else f"{settings.method} waits for the device"
        record, self.obstacle = choose_recorder(setup.config.performance, setup.device, obstacle)
        self.held: HeldNumbers | None = None

        def hold(sizes: StepSizes) -> StepSizes:
            if record is None:
                return sizes
            self.held = HeldNumbers(sizes, setup.restart_steps, setup.posed.y[0])
            return self.held.sizes

        self.method, self.schedules = build_method(settings, self.epoch_steps, setup.alpha_groups(), hold)
        rate = self.schedules.weights_lr
        self.guard = FiniteGuard(self.name, setup.device, lambda step: rate(step % setup.restart_steps))
        self.advance: Any = self._advance
        if record is not None:

            def note(text: str) -> None:
                chosen = trials_text()
                self._note(f"{text}; {chosen}" if chosen else text)

            self.advance = CapturedStep(self._advance, setup.device, record, note, setup.carried)

    def _initialise_state(self) -> None:
        """Begins the method at the present alphas and weights."""
        setup = self.setup
        # automatic constants are found on the first batches; other methods evaluate nothing before their first step
        known = parse_method(setup.config.search.method)
        first = setup.batches(self.counters.step) if known.is_automatic else (None, None)
        self.state = self.method.init(setup.posed.problem, self.x, self.y, *first)

    def _restart(self) -> None:
        """Begins from other weights and alphas."""
        number = self.counters.step // self.setup.restart_steps
        self.ended.append([tensor.detach().clone() for tensor in self.x])
        self.x, self.y = self.setup.restart(number)
        self._build_method()  # a step is recorded again
        self._initialise_state()
        self._note(f"restart {number + 1} of {self.total_steps // self.setup.restart_steps}, from other weights")

    def run(self, output: str | PathLike[str], resume: bool = False, hooks: Sequence[Hook] = ()) -> Any:
        """Runs what is left in the run folder and returns the result.

        Args:
            output: Run folder; a missing or empty one, or one to resume.
            resume: Continue from the last checkpoint.
            hooks: Called by the training loop.
        """
        subject = self.subject
        return run(self, subject.stage, subject.configuration(), output, resume, hooks, subject.result_of)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def start(self, loop: Loop) -> None:
        """Begins or resumes in a run folder."""
        self.loop = loop
        self.subject.start(loop)
        if self.obstacle:
            self._note(f"{NOT_REPLAYED}: {self.obstacle}")
        if self.setup.device.type != "cpu":
            self._note(f"the first steps prepare kernels on {self.setup.device}, which can take half a minute")

    def done(self) -> bool:
        """Returns whether all steps are done, or the subject ends the search."""
        return self.counters.step >= self.total_steps or self.subject.stops()

    def train_step(self) -> Any:
        """Does one step of the method and returns its info."""
        setup, step = self.setup, self.counters.step
        if step and step % setup.restart_steps == 0:
            self._restart()
        # operations that draw (noise) use the global generator: tied to the step, so that a resumed run repeats it
        torch.manual_seed(seed_for(setup.config.seed, "step", step))
        batches = setup.batches(step)
        if self.held is not None:
            self.held.fill(step % setup.restart_steps)
            # methods that draw are not recorded, so that a seed, which is another one in every step, is not read
            batches = tuple(batch._replace(progress=self.held.progress, seed=0) for batch in batches)
            self.state = counts_as_tensors(self.state, setup.device)
        (x, self.y, self.state), (info, numbers) = self.advance((self.x, self.y, self.state), batches)
        self.counters.step += 1
        self.x, self.c = x, getattr(info, "c", None)
        if self.held is not None:
            # hooks may keep alphas; weights and the method's state are overwritten by the next step
            self.x, self.c = [t.clone() for t in x], None if self.c is None else self.held.number("c")
        for name, value in numbers.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        return info

    def _advance(self, before: Any, batches: Any) -> tuple[Any, tuple[Any, dict[str, Tensor]]]:
        """Does one step and checks its numbers: (x, y, state), (batch of F, batch of f) -> the new ones, its info."""
        setup, buffers = self.setup, self.setup.buffers()
        upper, lower = batches
        self.guard.before(lambda: buffers)
        with setup.sharing():
            *after, info = self.method.step(setup.posed.problem, *before, upper_batch=upper, lower_batch=lower)
        numbers = step_numbers(info)
        x, y, state = after
        statistics = [buffer for buffer, constant in zip(buffers, self._constant) if not constant]
        values = {"alphas": x, "weights": y, "theta and momentum": state, "running statistics": statistics}
        checked = {name: value for name, value in numbers.items() if name != "cosine"}
        return self.guard.after(self.counters.step + 1, checked, values, tuple(after), before), (info, numbers)

    def _note(self, text: str) -> None:
        """Writes a sentence to the log and the terminal, if the search has a folder."""
        if hasattr(self, "loop"):
            self.loop.say(f"search: {text}")

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
        names, count = {"architecture_loss": "upper_loss", "weights_loss": "lower_loss"}, self.steps_of_epoch()
        return {name: self.sums[key].item() / count for name, key in names.items() if key in self.sums}

    def steps_of_epoch(self) -> int:
        """Returns the number of steps done in the present epoch."""
        return (self.counters.step - 1) % self.epoch_steps + 1

    def end_epoch(self) -> tuple[dict[str, Any], bool]:
        """Evaluates, logs and writes the epoch."""
        distributed.check_equal(
            {
                "alphas": self.x,
                "weights": self.y,
                "theta and momentum": list(tensors_in(self.state)),
                "running statistics": self.setup.buffers(),
            }
        )
        self.y, self.state = (self.y, self.state) if self.held is None else copied((self.y, self.state))
        found = self.subject.end_epoch(self)
        self.sums = {}
        return found

    def finish(self) -> Any:
        """Returns the result."""
        return self.subject.finish(self)

    def reported_weights(self) -> str | None:
        """Returns None: the result is of the last weights, which last.pt holds."""
        return None

    def replay_log(self) -> None:
        """Shows the pictures of an epoch again, if the run was resumed at its end."""
        if self.counters.epochs and self.counters.step % self.epoch_steps == 0 and not self.sums:
            self.subject.replay_log(self)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns alphas, weights, the method's state, running statistics, sums, means, and what the subject adds."""
        return {
            "x": self.x,
            "y": self.y,
            "state": pack(self.state),
            "buffers": self.setup.named_buffers(),
            "theta_buffers": self.setup.posed.theta_buffers,
            "sums": self.sums,
            "c": self.c,
            "latest": self.latest,
            **({"ended": self.ended} if self.ended else {}),
            **self.subject.state_dict(self),
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
            (self.setup.named_buffers(), "buffers"),
            (self.setup.posed.theta_buffers, "theta_buffers"),
        ):
            check_like(payload[key], buffers)
            for name, value in payload[key].items():
                buffers[name].copy_(value)
        self.sums = {name: value.to(device) for name, value in payload["sums"].items()}
        self.c, self.latest = payload["c"], payload["latest"]
        self.ended = [[tensor.to(device) for tensor in tensors] for tensors in payload.get("ended", [])]
        self.subject.load_state_dict(payload)
