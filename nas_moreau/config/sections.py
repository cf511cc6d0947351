"""The keys of a configuration: type, bounds, default and meaning of each (`nas-moreau config KEY` prints them).

Defaults are the published DARTS settings, with the Moreau-envelope method instead of DARTS' own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

LARGEST_FLOAT = 3.4e38
"""What float32 holds; torch refuses larger numbers in the middle of a step."""
MAX_THREADS = 1024
"""Torch dies without a message where the system gives it no more threads."""


def _float32(value: float) -> float:
    if value > LARGEST_FLOAT:
        raise ValueError(f"it takes a number up to {LARGEST_FLOAT:g}")
    return value


Positive = Annotated[float, Field(gt=0), AfterValidator(_float32)]
NotNegative = Annotated[float, Field(ge=0), AfterValidator(_float32)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
MAX_EPOCHS = 100_000
Epochs = Annotated[int, Field(ge=1, le=MAX_EPOCHS)]
Channels = Annotated[int, Field(ge=1, le=16384)]
Layers = Annotated[int, Field(ge=1, le=1000)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Threads = Annotated[int, Field(ge=1, le=MAX_THREADS)]


class Section(BaseModel):
    """A part of the configuration: unknown keys, NaN, infinity and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, strict=True)


class DataConfig(Section):
    """The images."""

    name: str = Field(default="shapes", description="Data source, as --data takes it (nas-moreau list sources).")
    directory: str = Field(default="data", description="Folder of downloaded data sets (--data-dir).")
    image_size: Pixels | None = Field(
        default=None,
        description="Height and width of every image: the shorter side is resized, then the centre is kept. "
        "Default: images keep their size if they all have the same one, otherwise 32 (Omniglot: 28).",
    )
    train_images: Count | None = Field(
        default=None,
        description="Number of training images to use, the same share of each class, the same ones for every seed. "
        "Default: all.",
    )
    download: bool = Field(default=False, description="Whether a missing data set may be downloaded (--download).")


class AugmentConfig(Section):
    """Augmentation of training images."""

    crop: Annotated[int, Field(ge=0)] = Field(
        default=4, description="Padding in pixels before a random crop; 0 for none."
    )
    flip: bool = Field(default=True, description="Whether half of the images are mirrored horizontally.")
    cutout: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Side of the cutout square in pixels; 0 for none."
    )


class SplitConfig(Section):
    """Fractions of the training images; they add up to 1."""

    weights: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.45, description="Weight split: trains the weights y."
    )
    architecture: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.45, description="Architecture split: trains the alphas x."
    )
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.10, description="Held-out split: used by neither level, for the accuracy that is reported."
    )

    @model_validator(mode="after")
    def _whole(self) -> SplitConfig:
        if abs(self.weights + self.architecture + self.held_out - 1) > 1e-9:
            raise ValueError("weights, architecture and held_out must add up to 1")
        return self


class WeightsConfig(Section):
    """The update rule of the supernet's weights y and of theta."""

    rule: Literal["momentum", "adamw"] = Field(
        default="momentum",
        description="momentum: SGD with momentum. adamw: AdamW, as transformers need it, with a smaller lr (0.001); "
        "not for moreau-auto, darts2 and methods with an inner loop, which take steps of SGD.",
    )
    lr: Positive = Field(default=0.025, description="Initial learning rate; a cosine schedule, one step an epoch.")
    lr_min: NotNegative = Field(default=0.001, description="Learning rate at the end of the schedule.")
    momentum: Fraction = Field(default=0.9, description="Momentum; of adamw the decay of the average direction.")
    weight_decay: NotNegative = Field(
        default=3e-4, description="Weight decay, added to the gradient; by adamw to the step."
    )
    clip: Positive | None = Field(default=5.0, description="Maximum norm of the gradient; null for no clipping.")


class AlphasConfig(Section):
    """The update rule of the alphas x."""

    rule: Literal["adam", "mirror", "projected"] = Field(
        default="adam",
        description="adam: Adam on the logits. mirror: a mirror step with the entropy (exponentiated gradient) on "
        "their softmax weights. projected: a gradient step on the softmax weights, projected onto the simplex. A "
        "method whose weights are not the softmax of the alphas (drnas) always takes adam, moreau-auto its own rule.",
    )
    step: Positive = Field(default=0.1, description="Step size of the rules mirror and projected; constant.")
    lr: Positive = Field(
        default=3e-4, description="Adam's initial learning rate; a cosine schedule, one step an epoch."
    )
    lr_min: NotNegative = Field(default=3e-4, description="Adam's learning rate at the end of the schedule.")
    betas: tuple[Fraction, Fraction] = Field(
        default=(0.5, 0.999), strict=False, description="Decay rates of Adam's two averages."
    )
    weight_decay: NotNegative = Field(default=1e-3, description="Adam's weight decay, added to the gradient.")
    init_scale: NotNegative = Field(default=1e-3, description="Standard deviation of the initial alphas.")


class MoreauConfig(Section):
    """Constants of the Moreau-envelope method."""

    gamma: Positive = Field(
        default=100.0, description="Parameter of the Moreau envelope: theta minimises f(x, .) + |. - y|^2 / (2 gamma)."
    )
    c: Positive = Field(default=1.0, description="Initial penalty: c_k = c (k+1)^p.")
    p: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.05, description="Growth of the penalty: c_k = c (k+1)^p."
    )
    weights_lr: Positive | None = Field(
        default=None,
        description="Initial learning rate of y. Default: c/(1+c) * search.weights.lr. The gradient of F/c_k + f is "
        "about (1+c)/c times that of f, so this keeps the effective learning rate equal to that of the other methods.",
    )
    theta_lr: Positive | None = Field(default=None, description="Initial learning rate of theta. Default: that of y.")
    theta_steps: Count = Field(default=1, description="Steps of theta in each step of the method.")


class PenaltyConfig(Section):
    """Weights, in F, of what the softmax of the alphas costs, as a fraction of the most expensive cells."""

    parameters: NotNegative = Field(default=0.0, description="Weight of the parameters; 0 for none.")
    macs: NotNegative = Field(default=0.0, description="Weight of the multiply-adds of one image; 0 for none.")
    ms: NotNegative = Field(
        default=0.0,
        description="Weight of the latency of one image, measured on the device when the search begins; 0 for none.",
    )

    def weights(self) -> dict[str, float]:
        """Returns kind -> weight of those that are not 0."""
        return {kind: weight for kind, weight in self.model_dump().items() if weight}


class SearchConfig(Section):
    """The search stage."""

    method: str = Field(
        default="moreau+beta",
        description="Search method (nas-moreau list methods), with additions such as +beta and +pc.",
    )
    channels: Channels = Field(default=16, description="Channels of the supernet's first cell.")
    layers: Layers = Field(
        default=8, description="Cells of the supernet; in nas_bench_201 the cells of each of three stages."
    )
    epochs: Epochs = Field(default=50, description="Epochs.")
    restarts: Count = Field(
        default=1,
        description="Searches one after the other, each of search.epochs epochs from other initial weights and alphas; "
        "the cell is derived from the mean of their softmax weights.",
    )
    batch_size: Annotated[int, Field(ge=2)] = Field(default=64, description="Images of a batch, for each level.")
    steps_per_epoch: Count | None = Field(
        default=None, description="Steps of an epoch. Default: one pass over the weight split."
    )
    image_size: Pixels | None = Field(
        default=None,
        description="Height and width in the search, by the rule of data.image_size. Default: unchanged.",
    )
    split: SplitConfig = Field(default=SplitConfig(), description="Parts of the training images.")
    augment: AugmentConfig = Field(default=AugmentConfig(), description="Augmentation in the search.")
    weights: WeightsConfig = Field(default=WeightsConfig(), description="SGD on the supernet's weights y and on theta.")
    alphas: AlphasConfig = Field(default=AlphasConfig(), description="Update rule of the alphas x.")
    moreau: MoreauConfig = Field(default=MoreauConfig(), description="Constants of the Moreau-envelope method.")
    beta: NotNegative = Field(
        default=10.0, description="Weight, in F, of the Beta-DARTS regularisation that +beta adds."
    )
    penalty: PenaltyConfig = Field(default=PenaltyConfig(), description="Costs in F, by the softmax of the alphas.")
    partial_channels: Annotated[int, Field(ge=2)] = Field(
        default=4, description="With +pc, one in this number of channels passes through the operations."
    )
    guard: Literal["off", "stop", "best"] = Field(
        default="off",
        description="Guard against collapse. stop: end the search after three consecutive epochs with a derived "
        "cell that is collapsed. best: derive from the epoch of the best one-hot accuracy on the held-out split.",
    )
    eigenvalue: bool = Field(
        default=False,
        description="Whether to compute, after every epoch, the dominant eigenvalue of the Hessian in the alphas of "
        "the loss on a batch of the architecture split.",
    )

    @field_validator("guard", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a plain `off` as false

    @property
    def all_epochs(self) -> int:
        """Epochs of all restarts together."""
        return self.epochs * self.restarts


class ShortTrainingConfig(Section):
    """The candidates of the rule trained: how many, and how each is trained, in a narrow and deep network."""

    candidates: Count = Field(default=16, description="Cells that are trained: the derived one and drawn ones.")
    steps: Count = Field(
        default=1600, description="Steps of the last two candidates; after half of them half of the candidates go on."
    )
    channels: Count = Field(default=8, description="Channels of the network's first cell.")
    layers: Count | None = Field(
        default=None, description="Cells of the network, as retrain.layers counts them. Default: those of retrain."
    )
    batch_size: Annotated[int, Field(ge=2)] = Field(default=64, description="Images of a batch.")
    lr: Positive = Field(default=0.1, description="Initial learning rate of SGD with Nesterov's momentum; cosine.")


class DeriveConfig(Section):
    """How the cell follows from a finished search, and limits for the retraining network."""

    rule: str = Field(
        default="space", description="Derivation rule (nas-moreau list rules); space is the rule of the search space."
    )
    images: Count = Field(
        default=5000,
        description="Maximum number of images on which the rules perturbation, selection and trained measure a cell.",
    )
    trained: ShortTrainingConfig = Field(
        default=ShortTrainingConfig(), description="The short training of candidates by the rule trained."
    )
    max_parameters: Count | None = Field(default=None, description="Maximum number of parameters; null for no limit.")
    max_macs: Count | None = Field(default=None, description="Maximum multiply-adds on one image; null for no limit.")


class RetrainConfig(Section):
    """The retraining stage; optimizer, schedule, losses, mixup and EMA are timm's."""

    channels: Channels = Field(default=36, description="Channels of the network's first cell.")
    layers: Layers = Field(
        default=20, description="Cells of the network; in nas_bench_201 the cells of each of three stages."
    )
    epochs: Epochs = Field(default=600, description="Epochs.")
    batch_size: Annotated[int, Field(ge=2)] = Field(default=96, description="Images of a batch.")
    accumulate: Count = Field(
        default=1, description="Number of parts in which a batch is computed; their gradients are averaged."
    )
    steps_per_epoch: Count | None = Field(
        default=None, description="Steps of an epoch. Default: one pass over the training images."
    )
    optimizer: str = Field(
        default="momentum", description="Optimizer of timm: momentum (SGD), sgd (Nesterov), adamw, ..."
    )
    lr: Positive = Field(default=0.025, description="Initial learning rate.")
    momentum: Fraction = Field(default=0.9, description="Momentum.")
    weight_decay: NotNegative = Field(default=3e-4, description="Weight decay.")
    clip: Positive | None = Field(default=5.0, description="Maximum norm of the gradient; null for no clipping.")
    schedule: Literal["cosine", "step", "poly", "tanh"] = Field(
        default="cosine", description="Learning-rate schedule of timm."
    )
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Epochs in which the learning rate rises, from lr / warmup_epochs in the first one."
    )
    auxiliary: bool = Field(default=True, description="Whether the network has an auxiliary head.")
    auxiliary_weight: NotNegative = Field(default=0.4, description="Weight of the auxiliary head's loss.")
    drop_path: Fraction = Field(
        default=0.2, description="Probability of dropping a path; it grows linearly over the epochs."
    )
    label_smoothing: Fraction = Field(default=0.0, description="Label smoothing.")
    mixup: NotNegative = Field(default=0.0, description="Alpha of mixup; 0 for none.")
    cutmix: NotNegative = Field(default=0.0, description="Alpha of cutmix; 0 for none.")
    ema: Fraction = Field(default=0.0, description="Decay of the moving average of the weights; 0 for none.")
    validation: Fraction = Field(
        default=0.0,
        description="Fraction of the training images for choosing the best epoch; 0 keeps the last epoch.",
    )
    evaluate_every: Annotated[int, Field(ge=0)] = Field(
        default=10, description="Epochs between two evaluations on the test images; 0 for one at the end."
    )
    augment: AugmentConfig = Field(default=AugmentConfig(cutout=16), description="Augmentation in the retraining.")


class PerformanceConfig(Section):
    """How to compute, not what: results agree up to rounding. Sampled paths are never compiled."""

    channels_last: bool = Field(
        default=True, description="Whether images and weights are stored with the channels last."
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="Precision of forward passes; parameters stay float32. float16 is for retraining only, with a "
        "loss scale that follows the gradients.",
    )
    tf32: Literal["auto"] | bool = Field(
        default="auto",
        description="Whether float32 products may round their factors to 10 bits. auto: on an accelerator only.",
    )
    compile: bool = Field(default=False, description="Whether to use torch.compile.")
    capture: Literal["auto"] | bool = Field(
        default="auto",
        description="Whether a whole step is recorded once and replayed as one graph of the device. auto: where device "
        "and method can; true: refuse where they cannot.",
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="Whether to keep only the inputs of a cell for the backward pass and compute it again there.",
    )
    threads: Threads | None = Field(default=None, description="CPU threads. Default: torch's own choice.")

    @model_validator(mode="after")
    def _one_of_two(self) -> PerformanceConfig:
        if self.compile and self.activation_checkpointing:
            raise ValueError("compile and activation_checkpointing exclude each other; set one of them to false")
        return self


class CheckpointConfig(Section):
    """Checkpoints: one after every epoch, and the reaction to numbers that are not finite."""

    every_steps: Count | None = Field(
        default=None, description="Steps between two further checkpoints. Default: none within an epoch."
    )
    on_nonfinite: Literal["stop", "rollback"] = Field(
        default="stop",
        description="If a number is not finite: stop, or return to the last checkpoint with halved step sizes.",
    )


class DistributedConfig(Section):
    """Several processes under torchrun."""

    sync_batchnorm: bool = Field(
        default=False,
        description="Whether batch normalisation uses the whole batch, not the shard of each rank.",
    )


class LoggingConfig(Section):
    """TensorBoard, trackers and progress."""

    tensorboard: bool = Field(default=True, description="Whether to write TensorBoard files.")
    every_steps: Count = Field(default=50, description="Steps between two readings of the metrics of a step.")
    edge_weights: bool = Field(default=False, description="Whether TensorBoard has a curve of each edge weight.")
    trackers: list[Literal["wandb", "mlflow"]] = Field(
        default=[],
        description="Experiment trackers that get settings, epochs and results as well: wandb, mlflow. Their own "
        "environment variables say where to (WANDB_MODE, MLFLOW_TRACKING_URI, ...).",
    )


class Config(Section):
    """Everything that defines a run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="Seed of every random draw.")
    device: str = Field(default="auto", description="auto (an accelerator if there is one), cpu, or a device of torch.")
    space: str = Field(default="darts", description="Search space: a name (nas-moreau list spaces) or a YAML file.")
    data: DataConfig = Field(default=DataConfig(), description="The images.")
    search: SearchConfig = Field(default=SearchConfig(), description="The search stage.")
    derive: DeriveConfig = Field(default=DeriveConfig(), description="From a finished search to the cell.")
    retrain: RetrainConfig = Field(default=RetrainConfig(), description="The retraining stage.")
    against_random: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0,
        description="Random cells that `run` trains by the recipe of the found one, to say whether it is better than "
        "chance (--against-random).",
    )
    performance: PerformanceConfig = Field(default=PerformanceConfig(), description="How to compute, not what.")
    checkpoint: CheckpointConfig = Field(
        default=CheckpointConfig(), description="Checkpoints and numbers that are not finite."
    )
    distributed: DistributedConfig = Field(default=DistributedConfig(), description="Several processes under torchrun.")
    logging: LoggingConfig = Field(default=LoggingConfig(), description="TensorBoard, trackers and progress.")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `make_config` accepts."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Returns the whole configuration as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)
