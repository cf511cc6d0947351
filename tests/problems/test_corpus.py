"""The corpus is divided without overlap, the weights enter as the formula says, and useless sources are found."""

import math

import pytest
import torch

from nas_moreau.bilevel.tensors import value_and_grads
from nas_moreau.problems.corpus import (
    BATCH,
    CONTEXT,
    LENGTH,
    RIDGE,
    SYMBOLS,
    USELESS,
    Batch,
    Corpus,
    byte_model,
    corpus_problem,
    next_byte,
    perplexity,
    read_corpus,
)


@pytest.fixture(scope="module")
def corpus():
    return read_corpus(0)


def test_the_texts_are_there_and_follow_the_seed(corpus):
    assert corpus.sources.shape == (len(corpus.names), LENGTH) and set(USELESS) < set(corpus.names)
    assert corpus.sources.dtype == torch.uint8 and int(corpus.sources.max()) < SYMBOLS
    assert not torch.equal(corpus.validation, corpus.test)
    named = dict(zip(corpus.names, corpus.sources))
    # rot13 of a letter is 13 letters on, symbols begin at the space
    docstrings, moved = named["docstrings"].long(), named["rot13"].long()
    upper = (docstrings >= 33) & (docstrings < 59)
    assert torch.equal(moved[upper], (docstrings[upper] - 33 + 13) % 26 + 33)
    assert torch.equal(named["backwards"].flip(0), named["docstrings"])
    assert torch.equal(
        named["shuffled letters"].bincount(minlength=SYMBOLS), named["docstrings"].bincount(minlength=SYMBOLS)
    )
    again = read_corpus(0)
    assert torch.equal(again.sources, corpus.sources) and torch.equal(again.test, corpus.test)


def test_batches_are_cut_from_their_source(corpus):
    batch = corpus.lower_batch(3, seed=1)
    assert (
        batch.contexts.shape == (len(corpus.names), BATCH, CONTEXT) and batch.targets.shape == batch.contexts.shape[:2]
    )
    text = bytes(corpus.sources[2].tolist())
    for context, target in zip(batch.contexts[2].tolist(), batch.targets[2].tolist()):
        assert bytes([*context, target]) in text
    assert torch.equal(corpus.lower_batch(3, seed=1).contexts, batch.contexts)
    assert not torch.equal(corpus.lower_batch(4, seed=1).contexts, batch.contexts)


def test_the_lower_level_by_hand():
    """Two sources with weights 1/2 and 1/4: their mean losses, halved as a mean over sources, and the ridge."""
    y = [t.double() for t in byte_model(0)]
    drawn = torch.randint(0, SYMBOLS, (2, 3, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(drawn[..., :-1], drawn[..., -1])
    x = [torch.tensor([0.0, math.log(1 / 3)], dtype=torch.float64)]
    losses = [
        -torch.log_softmax(next_byte(y, contexts), -1).gather(1, targets[:, None]).mean()
        for contexts, targets in zip(*batch)
    ]
    wanted = (losses[0] / 2 + losses[1] / 4) / 2 + 0.5 * RIDGE * sum(float(t.square().sum()) for t in y)
    found = value_and_grads(corpus_problem().f, x, y, batch)
    assert float(found.value) == pytest.approx(float(wanted))
    assert float(found.grad_x[0][0]) == pytest.approx(0.25 * float(losses[0]) / 2)


def test_perplexity_of_a_model_that_knows_nothing():
    y = [torch.zeros_like(t) for t in byte_model(0)]
    assert perplexity(y, torch.zeros(1000, dtype=torch.uint8), 100) == pytest.approx(SYMBOLS, rel=1e-5)


def test_a_corpus_is_plain_data():
    rows = torch.zeros(1, LENGTH, dtype=torch.uint8)
    assert int(Corpus(("one",), rows, rows[0], rows[0]).upper_batch(0, 0).targets.max()) == 0
