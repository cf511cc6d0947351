"""The retraining stage: determinism, exact resume with everything switched on, the published recipe, options."""

import csv
import json
import math
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from nas_moreau.architecture import Genotype
from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.data import Data, Images
from nas_moreau.data.batches import retraining_images
from nas_moreau.errors import InputError
from nas_moreau.runs import load_checkpoint
from nas_moreau.training.retrain import plan_retraining, retrain
from nas_moreau.training.signals import Interrupted, NonFinite

SETTINGS = ["space=darts", "retrain.augment.cutout=4"]
EVERYTHING = [
    "retrain.mixup=0.2",
    "retrain.cutmix=0.5",
    "retrain.label_smoothing=0.1",
    "retrain.ema=0.9",
    "retrain.validation=0.2",
    "retrain.drop_path=0.3",
    "retrain.warmup_epochs=1",
]
CELL = published_cell("DARTS_V2")


@pytest.fixture
def tiny(tiny_config):
    return lambda *overrides: tiny_config(*SETTINGS, *overrides)


def rows_of(folder):
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def bytes_of(folder):
    rows = [row.rsplit(",", 1)[0] for row in (folder / "metrics.csv").read_text().splitlines()]
    payload = load_checkpoint(folder / "checkpoints")[0]
    tensors = [t.numpy().tobytes() for key in ("model", "ema") for t in (payload[key] or {}).values()]
    return rows, tensors, (folder / "evaluation.json").read_bytes()


@pytest.mark.parametrize("overrides", [[], EVERYTHING], ids=["published", "everything"])
@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_stopped_and_resumed_retraining_gives_the_same_bytes(
    overrides, stop_after, tmp_path, tiny, tiny_data, stop_at
):
    config = tiny(*overrides)
    result = retrain(config, CELL, tmp_path / "whole", data=tiny_data)
    with pytest.raises(Interrupted, match="SIGINT"):
        retrain(config, CELL, tmp_path / "parts", data=tiny_data, hooks=[stop_at(stop_after, signal.SIGINT)])
    resumed = retrain(config, CELL, tmp_path / "parts", resume=True, data=tiny_data)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "parts")
    assert replace(resumed, wall_seconds=0.0, peak_memory_bytes=0) == replace(
        result, wall_seconds=0.0, peak_memory_bytes=0
    )
    for name in ("config.yaml", "result.json", "genotype.json", "genotype.svg", "checkpoints/best.pt"):
        assert (tmp_path / "whole" / name).exists()


def test_the_published_recipe_has_plain_momentum_and_decays_every_parameter(tmp_path, tiny, tiny_data):
    trainer = plan_retraining(tiny(), CELL, tiny_data).trainer
    assert type(trainer.optimizer) is torch.optim.SGD
    assert [(g["nesterov"], g["momentum"], g["weight_decay"]) for g in trainer.optimizer.param_groups] == [
        (False, 0.9, 3e-4)
    ]
    assert sum(len(g["params"]) for g in trainer.optimizer.param_groups) == len(list(trainer.network.parameters()))
    assert trainer.optimizer.param_groups[0]["lr"] == 0.025
    assert type(trainer.loss) is nn.CrossEntropyLoss and trainer.ema is None and trainer.mixup is None


def test_the_rate_starts_at_the_base_and_falls_by_a_cosine(tmp_path, tiny, tiny_data):
    retrain(tiny("retrain.epochs=4", "retrain.steps_per_epoch=1"), CELL, tmp_path / "a", data=tiny_data)
    rows = rows_of(tmp_path / "a")
    rates = [float(row["lr"]) for row in rows]
    assert rates[0] == 0.025 and rates == sorted(rates, reverse=True)
    assert rates[2] == pytest.approx(0.0125)
    assert [float(row["drop_path"]) for row in rows] == pytest.approx([0.0, 0.05, 0.1, 0.15])
    # evaluate_every is 10: the test images are looked at after the last epoch alone
    assert [row["test_accuracy"] != "" for row in rows] == [False, False, False, True]


def test_the_warm_up_trains_from_its_first_epoch(tmp_path, tiny, tiny_data):
    overrides = ["retrain.epochs=4", "retrain.steps_per_epoch=1", "retrain.warmup_epochs=2", "retrain.lr=0.04"]
    retrain(tiny(*overrides), CELL, tmp_path / "a", data=tiny_data)
    # half of the rate, three quarters, then the cosine over the whole length, (1 + cos(k pi / 4)) / 2
    wanted = [0.02, 0.03, 0.02, 0.04 * (1 - math.sqrt(0.5)) / 2]
    assert [float(row["lr"]) for row in rows_of(tmp_path / "a")] == pytest.approx(wanted)


def test_a_two_level_result_counts_without_the_auxiliary_head(tmp_path, tiny, tiny_data):
    with_head = retrain(tiny(), CELL, tmp_path / "a", data=tiny_data)
    without = retrain(tiny("retrain.auxiliary=false"), CELL, tmp_path / "b", data=tiny_data)
    assert (with_head.parameters, with_head.macs) == (without.parameters, without.macs)
    detail = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert sum(map(sum, detail["confusion"])) == detail["samples"] == 60 and detail["classes"] == ["a", "b", "c"]


def test_validation_images_choose_the_epoch_and_are_not_trained_on(tmp_path, tiny, tiny_data):
    images = retraining_images(tiny("retrain.validation=0.2"), tiny_data)
    assert len(images.batches.part) == 48 and len(images.validation) == 12
    assert not set(images.batches.part.indices.tolist()) & set(images.validation.indices.tolist())
    retrain(tiny("retrain.validation=0.2"), CELL, tmp_path / "a", data=tiny_data)
    rows = rows_of(tmp_path / "a")
    assert all(row["validation_accuracy"] for row in rows) and not any(row["test_accuracy"] for row in rows)


def test_bad_input(tmp_path, tiny, tiny_data):
    with pytest.raises(InputError, match="even"):
        retrain(tiny("retrain.mixup=0.1", "retrain.batch_size=7"), CELL, tmp_path / "a", data=tiny_data)
    with pytest.raises(InputError, match="timm makes no optimizer 'adamm'"):
        retrain(tiny("retrain.optimizer=adamm"), CELL, tmp_path / "a", data=tiny_data)
    other = Genotype.parse("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|")
    with pytest.raises(InputError, match="space 'nas_bench_201'"):
        retrain(tiny(), other, tmp_path / "a", data=tiny_data)
    small = tiny_data
    images = Images(small.train.pixels[:, :, :4, :4].contiguous(), small.train.labels)
    with pytest.raises(InputError, match="too small"):
        retrain(tiny(), CELL, tmp_path / "a", data=Data("s", small.classes, images, images, small.mean, small.std))
    assert not (tmp_path / "a").exists()
    with pytest.raises(NonFinite):
        retrain(tiny("retrain.lr=1e30", "retrain.clip=null"), CELL, tmp_path / "a", data=tiny_data)


def test_another_cell_cannot_resume_a_run(tmp_path, tiny, tiny_data):
    retrain(tiny(), CELL, tmp_path / "a", data=tiny_data)
    with pytest.raises(InputError, match="genotype"):
        retrain(tiny(), published_cell("DARTS_V1"), tmp_path / "a", resume=True, data=tiny_data)


@pytest.mark.parametrize(
    "overrides",
    [
        ["performance.precision=bfloat16"],
        ["performance.channels_last=false"],
    ],
)
def test_performance_options_give_the_same_network_up_to_rounding(overrides, tmp_path, tiny, tiny_data):
    def losses(folder, *more):
        retrain(tiny("retrain.drop_path=0", *more), CELL, folder, data=tiny_data)
        return [float(row["train_loss"]) for row in rows_of(folder)]

    plain, changed = losses(tmp_path / "a"), losses(tmp_path / "b", *overrides)
    assert changed == pytest.approx(plain, rel=0.05)
