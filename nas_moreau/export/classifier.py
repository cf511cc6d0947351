"""Networks with everything needed to use them: from a retraining, from an exported folder, or untrained."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_moreau.architecture import Genotype, Network
from nas_moreau.config import Config
from nas_moreau.data import describe_data, load_images
from nas_moreau.data.description import check_description, is_count
from nas_moreau.errors import InputError, first_line
from nas_moreau.runs.history import Stage
from nas_moreau.runs.manifest import read_recorded, sha256
from nas_moreau.runs.plain_files import read_json
from nas_moreau.training.recipe import build_network
from nas_moreau.training.resume import load_weights

MAX_WEIGHTS = 8 << 30
"""Bytes of model.safetensors that are read."""


@dataclass(frozen=True)
class Classifier:
    """A network and the description of its images and training.

    Attributes:
        network: On the CPU, in evaluation mode, without auxiliary head, on portable kernels.
        channels: Channels of its first cell.
        layers: Number of its cells, in the unit of the skeleton.
        data: The result of `describe_data` for the images it was trained on.
        record: result, environment and configuration of its training; empty if it was not trained.
    """

    network: Network
    channels: int
    layers: int
    data: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def genotype(self) -> Genotype:
        """The cells."""
        return self.network.genotype

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images it was trained on."""
        height, width = self.data["image_size"]
        return self.data["channels"], height, width


def from_run(folder: str | PathLike[str], config: Config) -> Classifier:
    """Returns the network of a retraining folder with the weights its result was measured with.

    Raises:
        InputError: The retraining has not finished, or its files are damaged.
    """
    stage = Stage(Path(folder), "retrain")
    if stage.genotype is None or not stage.data:
        raise InputError(f"{folder} has no genotype or no description of its images.", "Give a finished retraining.")
    data = check_description(stage.data, stage.path / "data.json")
    network = build_network(config, stage.genotype, len(data["classes"]), data["channels"], kernels="portable")
    load_weights(network, stage.path)
    record = {"result": stage.result, "environment": stage.environment, "config": config.to_dict()}
    return _finished(network, config, data, record)


def untrained(genotype: Genotype, config: Config) -> Classifier:
    """Returns the network of a genotype with the initial weights that a retraining by `config` would begin with.

    Raises:
        InputError: A size or the data of the configuration cannot be used.
    """
    data = describe_data(load_images(config))
    network = build_network(config, genotype, len(data["classes"]), data["channels"], kernels="portable")
    return _finished(network, config, data, {})


def _finished(network: Network, config: Config, data: dict[str, Any], record: dict[str, Any]) -> Classifier:
    network.auxiliary = None
    return Classifier(network.eval(), config.retrain.channels, config.retrain.layers, data, record)


def is_export(folder: str | PathLike[str]) -> bool:
    """Whether a folder was written by `export`."""
    return (Path(folder) / "config.json").is_file() and (Path(folder) / "model.safetensors").is_file()


def from_export(folder: str | PathLike[str]) -> Classifier:
    """Returns the network of an exported folder.

    Raises:
        InputError: Its files are damaged or of another program.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    config = read_json(folder / "config.json") or {}
    weights = read_recorded(folder / "model.safetensors", MAX_WEIGHTS) or b""
    try:
        options, own = config["model_args"], config["nas_moreau"]
        data = check_description(own["data"], folder / "config.json")
        if own["weights"] != sha256(weights):
            raise InputError(f"model.safetensors in {folder} holds other weights than were exported.", "Export again.")
        state = load(weights)
        network = _network_of(state, Genotype.from_json(options["genotype"]), options, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder / 'config.json'} is none of `nas-moreau export` ({first_line(error)}).", "Export again."
        ) from None
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{folder / 'model.safetensors'} cannot be used: {first_line(error)}.", "Export again."
        ) from None
    return Classifier(network.eval(), options["channels"], options["layers"], data, own["record"])


def _network_of(state: dict[str, Tensor], genotype: Genotype, options: dict[str, Any], data: dict[str, Any]) -> Network:
    """Returns the network of a configuration with its weights, which are compared before any memory is allocated."""
    channels, layers = options["channels"], options["layers"]
    elements = sum(tensor.numel() for tensor in state.values())
    if not (is_count(channels, elements) and is_count(layers, len(state))):
        raise ValueError(f"channels {channels!r} and layers {layers!r} do not fit the weights")

    def build() -> Network:
        classes, colours = len(data["classes"]), data["channels"]
        return Network(genotype, channels, layers, classes, in_channels=colours, kernels="portable")

    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in build().state_dict().items()}
    if wanted != {name: tensor.shape for name, tensor in state.items()}:
        raise ValueError("the sizes of the network are not those of the weights")
    network = build()
    network.load_state_dict(state)
    return network


def timm_configuration(classifier: Classifier, weights: str) -> dict[str, Any]:
    """Returns config.json of an exported folder: timm's description of the network, and ours.

    Args:
        classifier: The network.
        weights: SHA-256 of model.safetensors.
    """
    from nas_moreau.timm_models import CONFIGURATION

    channels, height, width = classifier.input_size
    with torch.no_grad():
        maps = classifier.network.forward_maps(torch.zeros(1, channels, height, width, device="cpu"))
    about = {
        "input_size": [channels, height, width],
        "pool_size": list(maps[-1].shape[-2:]),
        "crop_pct": 1.0,
        "crop_mode": "center",
        "interpolation": "bilinear",
        "fixed_input_size": False,
        "mean": classifier.data["mean"],
        "std": classifier.data["std"],
        "num_classes": len(classifier.data["classes"]),
        "first_conv": CONFIGURATION["first_conv"],
        "classifier": CONFIGURATION["classifier"],
    }
    return {
        "architecture": "nas_moreau",
        "num_classes": len(classifier.data["classes"]),
        "num_features": classifier.network.num_features,
        "global_pool": "avg",
        "label_names": classifier.data["classes"],
        "model_args": {
            "genotype": json.loads(classifier.genotype.to_json()),
            "channels": classifier.channels,
            "layers": classifier.layers,
            "num_classes": len(classifier.data["classes"]),
            "in_chans": channels,
        },
        "pretrained_cfg": about,
        "nas_moreau": {
            "digest": classifier.genotype.digest(),
            "weights": weights,
            "data": classifier.data,
            "record": classifier.record,
        },
    }
