"""The set-up of a search: the supernet, the splits of its images, and the bilevel problem on them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_moreau import distributed
from nas_moreau.architecture import Genotype, Network, SearchSpace, Supernet, load_space
from nas_moreau.architecture.networks.batch_norm import synchronise
from nas_moreau.architecture.networks.batch_shard import Gather, on_shard
from nas_moreau.architecture.networks.costs import added_costs, expected_cost, relative_costs
from nas_moreau.architecture.networks.latency import operation_latencies
from nas_moreau.architecture.networks.skeleton import check_images
from nas_moreau.bilevel.simplex_steps import Groups
from nas_moreau.config import Config
from nas_moreau.data import Data, seed_for
from nas_moreau.data.batches import Batches, SearchParts, search_parts
from nas_moreau.data.splitting import seeded
from nas_moreau.errors import InputError, first_line
from nas_moreau.runs.identity import Identity, recorded_identity, refuse_other
from nas_moreau.runs.own_checkpoints import own_checkpoint
from nas_moreau.search.methods import parse_method, search_supernet
from nas_moreau.search.problem import Posed
from nas_moreau.search.supernet_problem import Batch, supernet_problem, write_back
from nas_moreau.training.device import batchnorm_gather
from nas_moreau.training.resume import check_like

CostShares = dict[str, dict[str, Tensor]]
"""Kind of cost -> cell name -> (edges, operations), the operations' shares of the cost of the most expensive cells."""


@dataclass(frozen=True)
class SearchSetup:
    """What a search works on; nothing of it changes but the supernet's weights, which follow x and y.

    Attributes:
        config: The configuration.
        space: The search space.
        device: Of all tensors.
        parts: The weight, architecture and held-out split.
        lower, upper: Batches of the weight and the architecture split: this process's shard of them.
        gather: How BatchNorm's statistics are gathered from all processes, or None.
        supernet: The supernet.
        posed: The bilevel problem, its start, and the running statistics of theta.
        costs: For `search.penalty`; empty without.
        shape: (classes, channels, height, width) of the data.
    """

    config: Config
    space: SearchSpace
    device: torch.device
    parts: SearchParts
    lower: Batches
    upper: Batches
    gather: Gather | None
    supernet: Supernet
    posed: Posed
    costs: CostShares
    shape: tuple[int, int, int, int]

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch: `search.steps_per_epoch`, or one pass over the weight split."""
        return self.config.search.steps_per_epoch or len(self.lower)

    @property
    def total_steps(self) -> int:
        """Steps of the search, all restarts together."""
        return self.epoch_steps * self.config.search.all_epochs

    @property
    def restart_steps(self) -> int:
        """Steps after which it begins from other weights; a method that learns no alphas goes on with its weights."""
        learns = parse_method(self.config.search.method).learns_alphas
        return self.epoch_steps * self.config.search.epochs if learns else self.total_steps

    @torch.no_grad()
    def restart(self, number: int) -> tuple[list[Tensor], list[Tensor]]:
        """Returns other initial alphas and weights; sets the running statistics to their initial values."""
        of = self.supernet.classifier.weight
        image = (self.shape[1], *self.parts.weights.images.pixels.shape[-2:])
        fresh = build_supernet(self.config, self.shape[0], image, of.device, of.dtype, number)
        buffers = dict(fresh.named_buffers())
        for own in (self.named_buffers(), self.posed.theta_buffers):
            for name, buffer in own.items():
                buffer.copy_(buffers[name])
        return [p.detach() for p in fresh.alphas.values()], [p.detach() for p in fresh.weights()]

    @property
    def samples(self) -> int:
        """Samples of a step on each level."""
        return self.config.search.batch_size

    def batches(self, step: int) -> tuple[Batch, Batch]:
        """Returns the batches of F and f at a step."""
        return self.batch(self.upper, step), self.batch(self.lower, step)

    def batch(self, batches: Batches, step: int) -> Batch:
        """Returns a batch of one split at a step, with the seed of the method's draws."""
        seed = seed_for(self.config.seed, f"mixing of {batches.purpose}", step)
        return Batch(*batches.batch(step), step % self.restart_steps / self.restart_steps, seed)

    def buffers(self) -> list[Tensor]:
        """Returns the running statistics at y and at theta."""
        return [*self.supernet.buffers(), *self.posed.theta_buffers.values()]

    def named_buffers(self) -> dict[str, Tensor]:
        """Returns the running statistics at y."""
        return dict(self.supernet.named_buffers())

    def carried(self) -> list[Tensor]:
        """Returns none: cells keep no tensors outside of parameters and buffers."""
        return []

    def alpha_groups(self) -> Groups:
        """Returns the entries of the alphas that each softmax takes."""
        return self.supernet.alpha_groups()

    def sharing(self) -> AbstractContextManager[Any]:
        """Returns the context of a step in which several processes share a batch."""
        return on_shard(self.lower.shard, self.gather)


def build_search(config: Config, data: Data, device: torch.device) -> SearchSetup:
    """Returns the set-up of the search of a configuration.

    Raises:
        InputError: The images do not fit the supernet, a split is too small, or a batch cannot be shared evenly.
    """
    settings, last = config.search, config.performance.channels_last
    parts = search_parts(config, data, device)
    (shard,) = distributed.own_shards(settings.batch_size)
    lower, upper = (
        Batches(part, settings.batch_size, config.seed, purpose, shard, last, "search.batch_size")
        for part, purpose in ((parts.weights, "weights"), (parts.architecture, "architecture"))
    )
    height, width = parts.weights.images.pixels.shape[-2:]
    image = (data.channels, height, width)
    supernet = build_supernet(config, data.num_classes, image, device)
    costs = _cost_shares(config, supernet, image)
    return SearchSetup(
        config=config,
        space=supernet.space,
        device=device,
        parts=parts,
        lower=lower,
        upper=upper,
        gather=batchnorm_gather(config),
        supernet=supernet,
        posed=_pose(config, supernet, costs),
        costs=costs,
        shape=(data.num_classes, *data.input_size),
    )


def build_supernet(
    config: Config,
    num_classes: int,
    image: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype | None = None,
    restart: int = 0,
) -> Supernet:
    """Returns the supernet of a search, with initial weights drawn from the configuration's seed.

    Args:
        config: The sections `search`, `performance` and `distributed`, the space and the seed.
        num_classes: Number of classes.
        image: Channels, height and width of the images.
        device: Where it is put.
        dtype: Of its weights; by default torch's.
        restart: Number of the initial weights (`search.restarts`).

    Raises:
        InputError: The images are too small, or a size does not fit.
    """
    with seeded(seed_for(config.seed, "initial weights", *([restart] if restart else []))):
        supernet = search_supernet(load_space(config.space), config.search, num_classes, image[0])
    check_images(torch.empty((1, *image), device="meta"), supernet)
    supernet = supernet.to(device=device, dtype=dtype)
    if config.performance.channels_last:
        supernet = supernet.to(memory_format=torch.channels_last)
    if batchnorm_gather(config) is not None:
        synchronise(supernet)
    supernet.checkpointing = config.performance.activation_checkpointing
    return supernet


def search_identity(config: Config, data: Data) -> Identity:
    """Returns what a search is made of, by content."""
    return {"images": data.digest, "space": load_space(config.space).digest()}


def restore_supernet(run: str | PathLike[str], config: Config, data: Data, device: torch.device) -> Supernet:
    """Returns the supernet of a search folder as its last checkpoint left it, in evaluation mode, on the device.

    Args:
        run: Folder of the search.
        config: Its configuration.
        data: Its images; they may have been moved.
        device: Where to put the supernet.

    Raises:
        InputError: There is no checkpoint, it is damaged or another run's, or the images or the space are others.
    """
    loaded = own_checkpoint(Path(run))
    if loaded is None:
        raise InputError(f"{run} has no checkpoint yet.", "Let the search finish an epoch first.")
    refuse_other(recorded_identity(Path(run)), search_identity(config, data), "this command", f"the search in {run}")
    payload = loaded[0]
    size = config.search.image_size
    image = data.input_size if size is None else (data.channels, size, size)
    supernet = build_supernet(config, data.num_classes, image, device)
    try:
        buffers = dict(supernet.named_buffers())
        check_like(payload["buffers"], buffers)
        check_like([*payload["x"], *payload["y"]], [*supernet.alphas.values(), *supernet.weights()])
        write_back(supernet, payload["x"], payload["y"])
        for name, buffer in buffers.items():
            buffer.copy_(payload["buffers"][name])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"The checkpoint in {run} does not fit its supernet: {first_line(error)}.", "Restore the run's own files."
        ) from None
    return supernet.eval()


def _pose(config: Config, supernet: Supernet, costs: CostShares) -> Posed:
    settings = config.search
    weights = settings.penalty.weights()

    def penalty(alphas: list[Tensor]) -> Tensor:
        terms = [weight * expected_cost(alphas, costs[kind]) for kind, weight in weights.items()]
        return terms[0] if len(terms) == 1 else torch.stack(terms).sum()

    return supernet_problem(
        supernet,
        beta=settings.beta if "beta" in parse_method(settings.method).additions else 0.0,
        precision=config.performance.precision,
        transform=torch.compile if config.performance.compile else lambda forward: forward,
        mix=parse_method(settings.method).mix,
        penalty=penalty if costs else None,
    )


def _cost_shares(config: Config, supernet: Supernet, image: tuple[int, int, int]) -> CostShares:
    settings = config.search
    classes, weight = supernet.classifier.out_features, supernet.classifier.weight

    def build(genotype: Genotype) -> Network:
        return Network(genotype, settings.channels, settings.layers, classes, in_channels=image[0])

    def shares(kind: str) -> dict[str, Tensor]:
        if kind == "ms":
            added = distributed.run_on_rank0(lambda: operation_latencies(supernet.space, build, image, weight.device))
        else:
            added = added_costs(supernet.space, build, image, kind)
        tables = relative_costs(supernet.space, added, kind)
        return {name: table.to(weight.device, torch.float32) for name, table in tables.items()}

    return {kind: shares(kind) for kind in settings.penalty.weights()}
