"""For every test: one thread (tiny tensors only lose by more, and results repeat), no accelerator of the machine."""

from contextlib import contextmanager

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def registrations_forgotten():
    """A context manager after which operations, methods and sources that were registered within are unknown again."""
    from nas_moreau.architecture.networks import operations
    from nas_moreau.data.sources import SOURCES
    from nas_moreau.search import methods

    @contextmanager
    def forgotten():
        registries = (operations._BUILDERS, operations.KNOWN_OPERATIONS, methods.METHODS, SOURCES)
        before = [dict(registry) for registry in registries]
        try:
            yield
        finally:
            for registry, content in zip(registries, before):
                registry.clear()
                registry.update(content)

    return forgotten
