"""Networks of genotypes as timm models. Importing this module registers them:

    import timm, nas_moreau.timm_models
    timm.create_model("nas_moreau", genotype="checkpoints/first", num_classes=10)   # run, file, JSON, or name of a cell
    timm.create_model("PC_DARTS_cifar", num_classes=10)                             # each published or released cell

timm's training script accepts them: `train.py DIR --device-modules nas_moreau.timm_models --model PC_DARTS_cifar`, or
`--model nas_moreau --model-kwargs genotype=checkpoints/first channels=16 layers=8`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, register_notrace_module
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nas_moreau.architecture import Genotype, Network, NetworkPart, cell_names, load_genotype
from nas_moreau.architecture.networks.network import DerivedCell
from nas_moreau.architecture.networks.scripting import scriptable
from nas_moreau.architecture.networks.skeleton import run_cells
from nas_moreau.architecture.spaces.skeletons import reductions

DEFAULT_GENOTYPE = "DARTS_V2"
MATCH_PREVIOUS = (99999,)  # timm's marker: these parameters belong to the group before them

# a cell looks at the device and shape of its input, which a symbolic trace does not know
register_notrace_module(DerivedCell)


class NetworkOfCells(nn.Module):
    """`Network` under timm's protocol, with the same parameter names: a state dict of one fits the other.

    The arguments are those by which timm's `create_model` and training script call a model.

    Args:
        genotype: A run folder, a file, JSON, its plain data, or the name of a cell.
        channels: Channels of the first cell's nodes; by default those of the skeleton's published networks.
        layers: Number of cells, in the unit of the skeleton; by default that of the skeleton's published networks.
        num_classes: Number of classes; 0 leaves the classifier out.
        in_chans: Channels of the images.
        global_pool: timm's name of the pooling; "" returns the feature map.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Probability with which an edge is dropped for a sample in training, the same in every epoch.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        InputError: The genotype cannot be read, or a size is invalid.
    """

    global_pool: Any
    classifier: nn.Module

    def __init__(
        self,
        genotype: str | PathLike[str] | Mapping[str, Any] | Genotype = DEFAULT_GENOTYPE,
        channels: int | None = None,
        layers: int | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.genotype = read_genotype(genotype)
        channels, layers = sizes_of(self.genotype, channels, layers)
        with torch.device(device if device is not None else torch.get_default_device()):
            network = Network(self.genotype, channels, layers, 0, in_channels=in_chans).to(dtype=dtype)
        self.in_channels, self.drop_path_rate = in_chans, drop_path_rate
        self.parts, self.stem, self.cells = network.parts, network.stem, network.cells
        self.head_norm: nn.Module | None = network.head_norm
        self.num_features = network.num_features
        self.head_drop = nn.Dropout(drop_rate)
        self.grad_checkpointing = False
        self.feature_info = _levels(network.parts)
        self.reset_classifier(num_classes, global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's patterns that sort parameters by depth: stem, then each cell, or (coarse) each image size."""
        blocks: list[tuple[str, tuple[int, ...] | None]] = [(r"^cells\.(\d+)", None)]
        if coarse:
            blocks, first = [], 0
            for level, info in enumerate(self.feature_info[1:]):
                last = info["cells"]
                numbers = "|".join(str(i) for i in range(first, last))
                blocks.append((rf"^cells\.(?:{numbers})\.", (level,)))
                first = last
        return {"stem": r"^stem", "blocks": [*blocks, (r"^head_norm", MATCH_PREVIOUS)]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keeps only the cells' outputs for the backward pass and computes the rest again: less memory, more time."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Returns the last layer: linear, or the identity where there are no classes."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier (0 classes: none) and, if `global_pool` is given, the pooling."""
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        like = next(self.stem.parameters())
        self.global_pool, self.classifier = create_classifier(
            self.num_features, num_classes, pool_type=pool, device=like.device, dtype=like.dtype
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.classifier.train(self.training)

    def _run_cell(self, cell: nn.Module, inputs: list[Tensor]) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(cell, inputs, self.drop_path_rate, use_reentrant=False)
        return cell(inputs, self.drop_path_rate)

    def _normed(self, x: Tensor) -> Tensor:
        return x if self.head_norm is None else self.head_norm(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the last feature map (n, num_features, height, width) of images (n, in_chans, height, width)."""
        return self._normed(run_cells(self, x, self._run_cell)[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns logits (n, num_classes) of the last feature map, or with `pre_logits` what the classifier sees."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (n, num_classes) of images (n, in_chans, height, width)."""
        return self.forward_head(self.forward_features(x))

    def __prepare_scriptable__(self) -> nn.Module:
        """Returns what `torch.jit.script` compiles."""
        return scriptable(self, self.drop_path_rate)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Returns (last feature map, feature maps at the chosen levels of `feature_info`), or only the latter.

        Args:
            x: Images (n, in_chans, height, width).
            indices: Levels: a list, the number of last ones, or None for all.
            norm: Apply the norm before the head (NAS-Bench-201) to the last level too.
            stop_early: Leave out the cells that come after the last chosen level; then that level is the first result.
            output_fmt: Only "NCHW".
            intermediates_only: Leave the last feature map out.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"Feature maps are NCHW here, not {output_fmt}.")
        chosen, last = feature_take_indices(len(self.feature_info), indices)
        places = [self.feature_info[i]["cells"] for i in chosen]
        count = self.feature_info[last]["cells"] if stop_early else len(self.cells)
        maps = run_cells(self, x, self._run_cell, count)
        whole = count == len(self.cells) == self.feature_info[-1]["cells"]
        final = self._normed(maps[-1]) if whole else maps[-1]
        found = [final if norm and whole and place == count else maps[place] for place in places]
        return found if intermediates_only else (final, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the cells after the last of the chosen levels (and norm, and head); returns the levels' indices."""
        chosen, last = feature_take_indices(len(self.feature_info), indices)
        self.cells = self.cells[: self.feature_info[last]["cells"]]
        if self.head_norm is not None and (prune_norm or last < len(self.feature_info) - 1):
            self.head_norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return chosen


def _levels(parts: Sequence[NetworkPart]) -> list[dict[str, Any]]:
    """Returns timm's feature_info: the stem, then the last cell at every image size.

    `cells` is the number of cells up to the level, which is its place among the feature maps.
    """
    levels: list[dict[str, Any]] = []
    for place, (part, reduction) in enumerate(zip(parts, reductions(parts))):
        module = f"cells.{place - 1}" if place else "stem"
        level = {"num_chs": part.outputs, "reduction": reduction, "module": module, "cells": place}
        if part.stride > 1 or len(levels) < 2:
            levels.append(level)
        else:
            levels[-1] = level
    return levels


def read_genotype(genotype: str | PathLike[str] | Mapping[str, Any] | Genotype) -> Genotype:
    """Returns a genotype from any input of `load_genotype`, from its plain data, or unchanged."""
    if isinstance(genotype, Genotype):
        return genotype
    return Genotype.from_json(genotype) if isinstance(genotype, Mapping) else load_genotype(genotype)


def sizes_of(genotype: Genotype, channels: int | None, layers: int | None) -> tuple[int, int]:
    """Returns channels and layers, the published ones of the genotype's skeleton where they are None."""
    published = genotype.skeleton.published_sizes
    return (published[0] if channels is None else channels), (published[1] if layers is None else layers)


def _without_auxiliary(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of a retraining without its auxiliary head, which only training uses."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("auxiliary.")}


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    genotype = read_genotype(kwargs.pop("genotype", DEFAULT_GENOTYPE))
    channels, layers = sizes_of(genotype, kwargs.get("channels"), kwargs.get("layers"))
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    levels = _levels(genotype.network_parts(channels, layers))
    if levels[-1]["reduction"] != 4:  # the default configuration is that of two halvings
        overlay.setdefault("pool_size", (32 // levels[-1]["reduction"],) * 2)
    return build_model_with_cfg(
        NetworkOfCells,
        variant,
        pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=_without_auxiliary,
        feature_cfg={"out_indices": len(levels), "feature_cls": "getter"},
        genotype=genotype,
        **kwargs,
    )


CONFIGURATION: dict[str, Any] = {
    "url": "",
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "first_conv": "stem.0",
    "classifier": "classifier",
}
default_cfgs = generate_default_cfgs({name: dict(CONFIGURATION) for name in ["nas_moreau", *cell_names()]})


@register_model
def nas_moreau(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Returns the network of any genotype; see `NetworkOfCells` for the arguments."""
    return _create("nas_moreau", pretrained, **kwargs)


def _entry(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(name, pretrained, **(kwargs | {"genotype": name}))

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Returns the network of the cell {name}; see `NetworkOfCells` for the arguments."
    return create


for _name in cell_names():
    globals()[_name] = register_model(_entry(_name))
