"""The configuration of a run: typed, every key known, read from YAML and the command line. Imports no torch.

A configuration is data: nothing in it is ever imported or evaluated. Defaults are the published DARTS settings with
the Moreau-envelope method in place of DARTS' own; a preset or a file changes some keys, `key.sub=value` single ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nas_moreau.errors import InputError, meant
from nas_moreau.presets.by_name import preset_text
from nas_moreau.yaml_files import parse_yaml, read_text

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration: unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class DataConfig(Section):
    """Which images: a specification as `--data` takes it."""

    name: str = "shapes"
    directory: str = "data"
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    download: bool = False


class AugmentConfig(Section):
    """Random crop (padding in pixels), horizontal flip, cutout (side of the square in pixels, 0 for none)."""

    crop: Annotated[int, Field(ge=0)] = 4
    flip: bool = True
    cutout: Annotated[int, Field(ge=0)] = 0


class SplitConfig(Section):
    """Shares of the training images: for the weights, for the architecture, and for neither (reported accuracy)."""

    weights: Annotated[float, Field(gt=0, lt=1)] = 0.45
    architecture: Annotated[float, Field(gt=0, lt=1)] = 0.45
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.10

    @model_validator(mode="after")
    def _whole(self) -> SplitConfig:
        if abs(self.weights + self.architecture + self.held_out - 1) > 1e-9:
            raise ValueError("weights, architecture and held_out must add up to 1")
        return self


class WeightsConfig(Section):
    """SGD on the supernet's weights (y) and on theta: cosine from `lr` to `lr_min`, one step of the cosine an epoch."""

    lr: Positive = 0.025
    lr_min: NotNegative = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 3e-4
    clip: Positive | None = 5.0


class AlphasConfig(Section):
    """Adam on the architecture logits (x)."""

    lr: Positive = 3e-4
    lr_min: NotNegative = 3e-4
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.5, 0.999)
    weight_decay: NotNegative = 1e-3
    init_scale: NotNegative = 1e-3


class MoreauConfig(Section):
    """Constants of the Moreau-envelope method: gamma of the envelope, c_k = c (k+1)^p, and the steps of y and theta.

    `weights_lr`: y's first step; where it is not given c/(1+c) of `search.weights.lr`. y moves along F/c_k + f, which
    is (1+c)/c times as steep as f alone, so that a y with the whole step would learn at a rate that its rivals do not
    have. `theta_lr`: theta's where it is not y's.
    """

    gamma: Positive = 100.0
    c: Positive = 1.0
    p: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    weights_lr: Positive | None = None
    theta_lr: Positive | None = None
    theta_steps: Count = 1


class SearchConfig(Section):
    """The search stage.

    `beta`: weight of the term of F that `+beta` adds. `partial_channels`: with `+pc`, one in so many channels of a
    state goes through the operations.
    `macs_penalty`: weight, in F, of the multiply-adds that the softmax of the alphas expects, as a share of the dearest
    cells'; 0 for none. For methods that mix by the softmax alone.
    `guard`: "stop" ends a search after three epochs in a row whose derived cell is collapsed (more than half of its
    edges are skip_connect, none or noise); "best" derives from the epoch whose derived cell was best one-hot on the
    held-out images. `eigenvalue`: after every epoch the dominant eigenvalue of the Hessian, in the alphas, of the loss
    on a batch of the architecture split.
    """

    method: str = "moreau+beta"
    channels: Count = 16
    layers: Count = 8
    epochs: Count = 50
    batch_size: Annotated[int, Field(ge=2)] = 64
    steps_per_epoch: Count | None = None
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    split: SplitConfig = SplitConfig()
    augment: AugmentConfig = AugmentConfig()
    weights: WeightsConfig = WeightsConfig()
    alphas: AlphasConfig = AlphasConfig()
    moreau: MoreauConfig = MoreauConfig()
    beta: NotNegative = 10.0
    macs_penalty: NotNegative = 0.0
    partial_channels: Annotated[int, Field(ge=2)] = 4
    guard: Literal["off", "stop", "best"] = "off"
    eigenvalue: bool = False

    @field_validator("guard", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a plain `off` as false


class DeriveConfig(Section):
    """How the cell follows from a finished search: a rule, and what the retraining network may cost at most.

    `rule`: a derivation rule of `nas-moreau list rules`; "space" is the rule in the search space's own file. `images`:
    on at most so many images of a split the rules perturbation and selection measure cells.
    """

    rule: str = "space"
    images: Count = 5000
    max_parameters: Count | None = None
    max_macs: Count | None = None


class RetrainConfig(Section):
    """The retraining stage; optimizer, schedule, losses, mixing and EMA are timm's.

    `accumulate`: a batch goes through in so many parts, one after another, and their gradients are averaged.
    """

    channels: Count = 36
    layers: Count = 20
    epochs: Count = 600
    batch_size: Annotated[int, Field(ge=2)] = 96
    accumulate: Count = 1
    steps_per_epoch: Count | None = None
    optimizer: str = "momentum"
    lr: Positive = 0.025
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 3e-4
    clip: Positive | None = 5.0
    schedule: Literal["cosine", "step", "poly", "tanh"] = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    auxiliary: bool = True
    auxiliary_weight: NotNegative = 0.4
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.2
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    evaluate_every: Annotated[int, Field(ge=0)] = 10
    augment: AugmentConfig = AugmentConfig(cutout=16)


class PerformanceConfig(Section):
    """How to compute, not what: results agree up to rounding. Sampled paths are never compiled.

    `precision`: of forward passes; parameters stay float32. float16 is for retraining alone, with a loss scale that
    follows the gradients. `tf32`: whether float32 products may round their factors to 10 bits; "auto": on an
    accelerator, not on a CPU. `activation_checkpointing` keeps a cell's inputs alone for the backward pass and computes
    the cell twice.
    """

    channels_last: bool = True
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    tf32: Literal["auto"] | bool = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    threads: Count | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> PerformanceConfig:
        if self.compile and self.activation_checkpointing:
            raise ValueError("compile and activation_checkpointing do not go together; set one of them to false")
        return self


class CheckpointConfig(Section):
    """A checkpoint is written after every epoch, and besides after every `every_steps` steps if that is given.

    Where a number is not finite the run stops, or goes back to its last checkpoint with the step sizes halved.
    """

    every_steps: Count | None = None
    on_nonfinite: Literal["stop", "rollback"] = "stop"


class DistributedConfig(Section):
    """Several processes (torchrun). `sync_batchnorm`: normalise by the whole batch, not by each process's share."""

    sync_batchnorm: bool = False


class LoggingConfig(Section):
    """TensorBoard, and how many steps pass between two readings of the numbers."""

    tensorboard: bool = True
    every_steps: Count = 50


class Config(Section):
    """Everything that defines a run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: str = "auto"
    space: str = "darts"
    data: DataConfig = DataConfig()
    search: SearchConfig = SearchConfig()
    derive: DeriveConfig = DeriveConfig()
    retrain: RetrainConfig = RetrainConfig()
    performance: PerformanceConfig = PerformanceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    distributed: DistributedConfig = DistributedConfig()
    logging: LoggingConfig = LoggingConfig()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `make_config` accepts."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Returns the whole configuration as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def load_config(preset: str | None = None, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Returns the configuration made of the defaults, a preset or a file, and single keys: the later one wins.

    Args:
        preset: Name of a preset.
        path: A YAML file.
        overrides: Texts of the form `key.sub=value`; the value is read as YAML.

    Raises:
        InputError: Unknown preset, unreadable file, unknown key, or a value that does not fit; all problems at once.
    """
    if preset is not None and path is not None:
        raise InputError("Both a preset and a configuration file were given.", "Give one of --preset and --config.")
    data: dict[str, Any] = {}
    origin = "the configuration"
    if preset is not None:
        data, origin = _parse(preset_text(preset), f"preset {preset}"), f"preset {preset}"
    elif path is not None:
        data, origin = _parse(read_text(Path(path), "The configuration"), str(path)), str(path)
    return make_config(data, origin, overrides)


def make_config(data: Any, origin: str = "the configuration", overrides: Sequence[str] = ()) -> Config:
    """Returns the configuration of plain data, with single keys set by `overrides` (`key.sub=value`).

    Raises:
        InputError: Lists every key that is unknown or does not fit.
    """
    data = copy.deepcopy(data) if overrides else data
    for override in overrides:
        _set(data, override)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors(include_url=False)]
        raise InputError(
            f"In {origin}: {'; '.join(problems)}.",
            "Correct these keys (nas-moreau config explains each).",
        ) from None


def _parse(text: str, origin: str) -> dict[str, Any]:
    data = parse_yaml(text, origin, "Correct that line.")
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{origin} does not hold keys and values.", "Write lines of the form 'key: value'.")
    return data


def _set(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise InputError(f"'{override}' is not of the form key.sub=value.", "Write for example search.epochs=10.")
    value = _parse(f"value: {text}", f"'{override}'").get("value")
    place = data
    for part in parts[:-1]:
        if not isinstance(place.setdefault(part, {}), dict):
            raise InputError(f"'{override}' goes below '{part}', which is a single value.", "Check the key.")
        place = place[part]
    if isinstance(place.get(parts[-1]), dict) and isinstance(value, dict):
        place[parts[-1]] |= value
    else:
        place[parts[-1]] = value


def _describe(problem: Any) -> str:
    """Returns one problem of pydantic's list in words."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        section: Any = Config
        for part in location[:-1]:
            section = section.model_fields[part].annotation
        known = [".".join([*location[:-1], name]) for name in section.model_fields]
        return f"unknown key '{key}'{meant(key, known)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"'{key}' is {problem['input']!r}: {message[:1].lower()}{message[1:]}"[:300] if key else message


def flatten(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of nested plain data; an empty section is a value."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
