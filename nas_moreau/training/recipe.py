"""What the configuration's `retrain` section stands for: network, loss, optimizer and schedule.

All but the network are timm's. Two of its factories' defaults differ from the published recipe and are set back: the
name `sgd` means Nesterov there (ours is `momentum`), and biases and norms are spared weight decay by default.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from nas_moreau.architecture import Genotype, Network
from nas_moreau.config import Config, RetrainConfig
from nas_moreau.data import seed_for
from nas_moreau.data.splitting import seeded
from nas_moreau.errors import InputError


def build_network(
    config: Config, genotype: Genotype, num_classes: int, in_channels: int, kernels: str = "auto"
) -> Network:
    """Returns the network of the configuration's `retrain` section with initial weights drawn from its seed."""
    settings = config.retrain
    with seeded(seed_for(config.seed, "initial weights of the network")):
        return Network(
            genotype,
            settings.channels,
            settings.layers,
            num_classes,
            settings.auxiliary,
            settings.drop_path,
            in_channels,
            kernels,
        )


def training_loss(settings: RetrainConfig, num_classes: int) -> tuple[nn.Module, Any]:
    """Returns timm's loss for the settings, and its Mixup (None where nothing is mixed)."""
    from timm.data import Mixup
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    if settings.mixup or settings.cutmix:
        mixup = Mixup(
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            label_smoothing=settings.label_smoothing,
            num_classes=num_classes,
        )
        return SoftTargetCrossEntropy(), mixup
    if settings.label_smoothing:
        return LabelSmoothingCrossEntropy(settings.label_smoothing), None
    return nn.CrossEntropyLoss(), None


def build_optimizer(network: nn.Module, settings: RetrainConfig, factor: float = 1.0) -> tuple[Any, Any]:
    """Returns timm's optimizer and schedule of the settings, the learning rate multiplied by `factor`.

    Raises:
        InputError: timm makes no such optimizer.
    """
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    try:
        optimizer = create_optimizer_v2(
            network,
            settings.optimizer,
            factor * settings.lr,
            settings.weight_decay,
            settings.momentum,
            filter_bias_and_bn=False,
        )
    except (ValueError, AssertionError, KeyError) as error:
        raise InputError(
            f"timm makes no optimizer '{settings.optimizer}': {str(error).rstrip('.')}.",
            "Use momentum, sgd (Nesterov), adamw or another of timm's names.",
        ) from None
    scheduler, _ = create_scheduler_v2(
        optimizer,
        settings.schedule,
        settings.epochs,
        warmup_epochs=settings.warmup_epochs,
        warmup_lr=factor * settings.lr / max(1, settings.warmup_epochs),  # timm's default: a first epoch at rate 0
        min_lr=0.0,
        decay_epochs=max(1, settings.epochs // 3),
    )
    return optimizer, scheduler
