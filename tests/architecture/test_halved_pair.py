"""The factorized reduction: its values, its gradients, and the memory around them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as f

from nas_moreau.architecture.networks.operations import HalvedPair


@pytest.mark.parametrize("channels", [2, 7, 8, 9])
@pytest.mark.parametrize("side", [1, 4, 7])
def test_it_is_two_strided_convolutions(channels, side):
    torch.manual_seed(0)
    pair = HalvedPair(channels, 5).double()
    x = torch.randn(3, channels, side, side, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weights = [pair.even.weight, pair.odd.weight]
    found = pair(x.requires_grad_())
    padded = f.pad(x, (0, side % 2, 0, side % 2))
    by_hand = torch.cat([f.conv2d(x, weights[0], None, 2), f.conv2d(padded[:, :, 1:, 1:], weights[1], None, 2)], 1)
    torch.testing.assert_close(found, by_hand, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((y * direction).sum(), [x, *weights]) for y in (found, by_hand))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


PROGRAM = """
import torch
from nas_moreau.architecture.networks.operations import HalvedPair
torch.set_num_threads(1)
for channels in (2, 4, 6, 7):
    pair = HalvedPair(channels, 4)
    x = torch.randn(4, channels, 8, 8).contiguous(memory_format=torch.channels_last)
    for _ in range(100):
        pair(x).square().sum().backward()
        blocks = [bytearray(64 * size) for size in range(1, 14)]
"""


def test_gradients_stay_within_their_memory():
    """On CPUs of 8 lanes torch's own weight gradient of so few channels writes beyond it, which ends the process."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    checked = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"} if sys.platform == "linux" else {}
    environment = {**os.environ, **checked, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
