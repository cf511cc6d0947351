"""The set-up of a search in a module: a copy of the module, the parts of the data, and the bilevel problem on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas_moreau.architecture.spaces.alpha_table import AlphaTable, EdgeWeights, softmax
from nas_moreau.config import Config
from nas_moreau.data import seed_for
from nas_moreau.data.splitting import generator_for
from nas_moreau.errors import InputError
from nas_moreau.modules.check import Checked, ModuleLoss, check_metric, check_module, evaluate_once, number_of
from nas_moreau.modules.choice import Mixture, Places, mixed_by
from nas_moreau.modules.copying import copy_of, plain_tensors
from nas_moreau.modules.handed_weights import check_handed_weights
from nas_moreau.modules.problem import ModuleBatch, ModuleTensors, WithLoss, module_problem, softmax_mixtures
from nas_moreau.modules.stream import ModuleData, Stream
from nas_moreau.runs.identity import Identity
from nas_moreau.search.methods import parse_method
from nas_moreau.search.problem import Posed
from nas_moreau.training.device import autocast

EPOCHS = 10
"""A search is divided into as many epochs, each with an evaluation and a checkpoint, whatever the size of the data."""


def epochs_of(steps: int) -> tuple[int, int]:
    """Returns number and steps of the epochs: the last one may be shorter, and learning rates reach their ends in it.

    Args:
        steps: Steps of the search.
    """
    each = -(-steps // EPOCHS)
    return -(-steps // each), each


@dataclass(frozen=True)
class ModuleSetup:
    """What a search in a module works on (`search.engine.Setup`).

    Attributes:
        config: Seed, device, method and step sizes.
        device: Of all tensors.
        whole: A copy of the user's module with the loss; its weights follow x and y.
        checked: Its Choices and how they are called.
        posed: The bilevel problem, its start, and the running statistics of theta.
        data: The parts of the data.
        initial: The weights and buffers that the module came with, by name.
        epoch_steps, total_steps: Steps of an epoch, and of the search, all restarts together.
        metric: (module, batch) -> a number that is reported; or None.
    """

    config: Config
    device: torch.device
    whole: WithLoss
    checked: Checked
    posed: Posed
    data: ModuleData
    initial: dict[str, Tensor]
    epoch_steps: int
    total_steps: int
    metric: Callable[[nn.Module, Any], Any] | None = None

    @property
    def samples(self) -> int:
        """Samples of a step on each level."""
        return self.data.lower.batch_size

    @property
    def places(self) -> Places:
        """The Choices."""
        return self.checked.places

    def batches(self, step: int) -> tuple[ModuleBatch, ModuleBatch]:
        """Returns the batches of F and f at a step."""
        upper, lower = (
            ModuleBatch(
                stream.batch(step),
                step % self.restart_steps / self.restart_steps,
                seed_for(self.config.seed, f"mixing of {stream.purpose}", step),
            )
            for stream in (self.data.upper, self.data.lower)
        )
        return upper, lower

    @property
    def restart_steps(self) -> int:
        """Steps after which it begins from other alphas, and the weights that the module came with."""
        return self.total_steps // self.config.search.restarts

    @torch.no_grad()
    def restart(self, number: int) -> tuple[list[Tensor], list[Tensor]]:
        """Returns other initial alphas and the weights that the module came with; sets the running statistics."""
        for own in (self.named_buffers(), self.posed.theta_buffers):
            for name, buffer in own.items():
                buffer.copy_(self.initial[name])
        weights = [self.initial[name].clone() for name in ModuleTensors.of(self.whole).weights]
        return _initial_alphas(self.config, self.places, self.device, number), weights

    def buffers(self) -> list[Tensor]:
        """Returns the running statistics at y and at theta."""
        return [*self.named_buffers().values(), *self.posed.theta_buffers.values()]

    def named_buffers(self) -> dict[str, Tensor]:
        """Returns the running statistics at y."""
        return dict(self.whole.named_buffers())

    def carried(self) -> list[Tensor]:
        """Returns the tensors in plain attributes of the module and its loss."""
        return plain_tensors(self.whole)

    def alpha_groups(self) -> None:
        """Returns None: every row of the alphas is one softmax."""

    def sharing(self) -> AbstractContextManager[Any]:
        """Returns a context that does nothing: each process normalises by its own shard."""
        return nullcontext()

    @torch.no_grad()
    def write_back(self, x: list[Tensor], y: list[Tensor]) -> None:
        """Copies alphas and weights into the module."""
        for choices, rows in zip(self.places.by_name.values(), x):
            for choice in choices:
                choice.alphas.copy_(rows[0])
        for parameter, value in zip(ModuleTensors.of(self.whole).weights.values(), y):
            parameter.copy_(value)

    def with_penalty(self, term: Callable[[list[Tensor]], Tensor]) -> ModuleSetup:
        """Returns the same search with a term of the alphas in its upper loss."""
        return self.with_upper(lambda value, x: value + term(x))

    def with_upper(self, scalarised: Callable[[Tensor, list[Tensor]], Tensor]) -> ModuleSetup:
        """Returns the same search with an upper objective made of the loss and the alphas."""
        return replace(self, posed=_posed(self.config, self.whole, self.checked, self.posed.x, scalarised))

    def alpha_table(self, x: list[Tensor]) -> AlphaTable:
        """Returns the softmax weights of alphas: a cell of one edge for every decision."""
        cells = {}
        for (name, options), rows in zip(self.places.options.items(), x):
            logits = rows[0].tolist()
            weights = dict(zip(options, softmax(logits)))
            cells[name] = (EdgeWeights((0, 1), weights, logits=dict(zip(options, logits))),)
        return AlphaTable(cells)

    def mixtures(self, x: list[Tensor]) -> dict[str, Mixture]:
        """Returns the softmax of the alphas by decision."""
        return dict(zip(self.places.by_name, softmax_mixtures(x)))

    def one_hot(self, picks: Mapping[str, int]) -> dict[str, Mixture]:
        """Returns the mixtures in which the picked options alone are computed."""
        found = {}
        for name, options in self.places.options.items():
            weights = torch.zeros(len(options), device=self.device)
            weights[picks[name]] = 1.0
            found[name] = Mixture(weights, (picks[name],))
        return found

    def evaluate(self, mixtures: Mapping[str, Mixture], check_stop: Callable[[], None]) -> dict[str, float]:
        """Returns the means of loss and metric over the held-out samples, in evaluation mode.

        Args:
            mixtures: Of every decision.
            check_stop: Called before every batch; may raise.
        """
        with mixed_by(self.places, mixtures):
            return mean_on(self.whole, self.data.held_out, self.metric, self.config.performance.precision, check_stop)


def mean_on(
    whole: WithLoss,
    stream: Stream,
    metric: Callable[[nn.Module, Any], Any] | None = None,
    precision: str = "float32",
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Returns the means of loss and metric ("loss", "metric") over the samples of a stream, in evaluation mode.

    Args:
        whole: Module and loss; its mode is restored.
        stream: The samples.
        metric: (module, batch) -> number, or None.
        precision: Of the forward passes.
        check_stop: Called before every batch; may raise.
    """
    sums: dict[str, Any] = {"loss": 0.0} | ({} if metric is None else {"metric": 0.0})
    total = 0
    with evaluating(whole), torch.no_grad():
        for batch, count in stream.all():
            check_stop()
            with autocast(stream.device.type, precision):
                sums["loss"] = sums["loss"] + count * whole(batch).double()
                if metric is not None:
                    sums["metric"] = sums["metric"] + count * number_of(metric(whole.module, batch))
            total += count
    return {name: float(value) / total for name, value in sums.items()}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within this context the module is in evaluation mode; afterwards every part is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def build_module_search(
    module: nn.Module,
    loss: ModuleLoss,
    data: ModuleData,
    config: Config,
    steps: int,
    metric: Callable[[nn.Module, Any], Any] | None,
) -> ModuleSetup:
    """Returns the set-up of a search; the user's module stays as it is.

    Args:
        module: Holds Choices.
        loss: (module, batch) -> scalar.
        data: On the device that is used.
        config: Seed, method and step sizes.
        steps: Steps of the search, from each restart on.
        metric: (module, batch) -> number, or None.

    Raises:
        InputError: The module, the loss or the data cannot be used.
    """
    device = data.lower.device
    working = _copied(module).to(device)
    if isinstance(loss, nn.Module):  # its weights are trained too
        _refuse_shared(module, loss)
        loss = _copied(loss).to(device)
    batch = data.lower.at(0)
    checked = check_module(working, loss, batch)
    if metric is not None:
        check_metric(metric, working, batch)
    copy_of(working)  # what a forward leaves in it must not stop that at the end
    x = _initial_alphas(config, checked.places, device)
    for choices, rows in zip(checked.places.by_name.values(), x):
        for choice in choices:
            choice.alphas = nn.Parameter(rows[0].clone())
    whole = WithLoss(working.train(), loss)
    weights = ModuleTensors.of(whole).weights
    if data.upper.samples is not data.lower.samples:
        evaluate_once(loss, working, data.upper.at(0))
    if not weights:
        raise InputError(
            "The module has no parameters to train but the alphas.", "Leave requires_grad=True where it is to learn."
        )
    check_handed_weights(whole, checked.places, batch)
    return ModuleSetup(
        config=config,
        device=device,
        whole=whole,
        checked=checked,
        posed=_posed(config, whole, checked, x),
        data=data,
        initial={name: t.detach().clone() for name, t in {**weights, **dict(whole.named_buffers())}.items()},
        epoch_steps=epochs_of(steps)[1],
        total_steps=steps * config.search.restarts,
        metric=metric,
    )


def _initial_alphas(config: Config, places: Places, device: torch.device, restart: int = 0) -> list[Tensor]:
    """Returns the alphas that a search begins with, each (1, options)."""
    scale, numbers = config.search.alphas.init_scale, [restart] if restart else []
    draws = {name: generator_for(config.seed, f"initial alphas of {name}", *numbers) for name in places.by_name}
    sizes = {name: (1, len(options)) for name, options in places.options.items()}
    return [scale * torch.randn(sizes[name], generator=draws[name], device="cpu").to(device) for name in draws]


def _refuse_shared(module: nn.Module, loss: nn.Module) -> None:
    """Raises InputError where the loss holds parameters of the module: of a copy, they would be others."""
    own = {id(parameter): name for name, parameter in module.named_parameters()}
    shared = [own[id(parameter)] for parameter in loss.parameters() if id(parameter) in own]
    if shared:
        raise InputError(
            f"The loss holds the module's parameter '{shared[0]}', which it would not share with the copy that is "
            "searched.",
            "Let it read the parameter from the module that it is called with.",
        )


def _posed(
    config: Config,
    whole: WithLoss,
    checked: Checked,
    x: list[Tensor],
    scalarised: Callable[[Tensor, list[Tensor]], Tensor] | None = None,
) -> Posed:
    method = parse_method(config.search.method)
    return module_problem(
        whole,
        checked.places,
        x,
        beta=config.search.beta if "beta" in method.additions else 0.0,
        precision=config.performance.precision,
        mix=method.mix,
        scalarised=scalarised,
        rebound=checked.rebound,
    )


def _copied(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise InputError(
            f"The first argument is a {type(module).__name__}, not an nn.Module.", "Call the function that makes it."
        )
    return copy_of(module)


def module_identity(setup: ModuleSetup) -> Identity:
    """Returns digests of the data, and of the module's parameters and options by name and shape."""
    tensors = {name: [list(t.shape), str(t.dtype)] for name, t in setup.whole.module.state_dict().items()}
    form = hashlib.sha256(repr((sorted(tensors.items()), setup.places.paths, setup.places.options)).encode())
    return {"data": setup.data.digest, "module": form.hexdigest()[:16]}
