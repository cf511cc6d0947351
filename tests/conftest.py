"""For every test: one thread (tiny tensors only lose by more, and results repeat), nothing from the environment's accelerators."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
