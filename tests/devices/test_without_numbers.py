"""Steps on tensors without numbers: `meta`, where any look at a value fails, and fake tensors of a GPU."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from nas_moreau.architecture import Genotype, Network, Supernet, load_space, published_cell
from nas_moreau.data.batches import Batches
from nas_moreau.training.retrain import plan_retraining

CELLS = {
    "darts": published_cell("DARTS_V2"),
    "nas_bench_201": Genotype.parse(
        "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
    ),
}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["retrain.mixup=0.2", "retrain.label_smoothing=0.1"],
        ["retrain.auxiliary=false", "retrain.optimizer=adamw"],
        ["performance.activation_checkpointing=true"],
        ["performance.channels_last=false"],
    ],
    ids=["published", "mixed", "adamw", "checkpointing", "contiguous"],
)
def test_a_retraining_step_runs_on_the_meta_device(overrides, monkeypatch, tiny_config, tiny_data):
    monkeypatch.setattr(Batches, "batch", batch_without_numbers)
    # no user may choose it: pick_device refuses a device without numbers
    monkeypatch.setattr("nas_moreau.training.retrain.set_up_device", lambda config: torch.device("meta"))
    job = plan_retraining(tiny_config("space=darts", *overrides), CELLS["darts"], tiny_data)
    losses = [job.train_step() for _ in range(2)]
    written = [*job.trainer.network.parameters(), *job.trainer.network.buffers(), *job.sums.values(), *losses]
    assert job.counters.step == 2 and all(t.is_meta for t in written)
    assert all(p.grad.is_meta for p in job.trainer.network.parameters())


def batch_without_numbers(self, step):
    """What `Batches.batch` gives; the windows of the random crop are picked by numbers, which `meta` has not."""
    return torch.empty(self.batch_size, 3, 8, 8, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")


@pytest.mark.parametrize("space", ["darts", "nas_bench_201"])
def test_forward_passes_on_fake_tensors_of_a_gpu(space):
    """(A backward pass of this device type asks for a driver, and so does autocast.)"""
    with FakeTensorMode(), torch.device("cuda"):
        images = torch.empty(4, 3, 32, 32).to(memory_format=torch.channels_last)
        supernet = Supernet(load_space(space), 4, 2, 10)
        network = Network(CELLS[space], 4, 2, 10, auxiliary=space == "darts", drop_path=0.2)
        outputs = [supernet(images), *as_pair(network(images))]
    for output in outputs:
        assert output.device.type == "cuda" and output.shape == (4, 10)


def as_pair(output):
    return output if isinstance(output, tuple) else (output,)
