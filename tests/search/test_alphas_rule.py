"""Steps of the alphas on the simplex in a search: the closed form, all kinds of alphas, and exact resuming."""

import pytest
import torch

from nas_moreau.architecture import AlphaTable, load_space
from nas_moreau.search import search
from nas_moreau.search.build import build_search
from nas_moreau.search.stage import cell_search
from nas_moreau.training.signals import Interrupted

MIRROR = ("search.alphas.rule=mirror", "search.alphas.step=0.5", "logging.tensorboard=false")


@pytest.mark.parametrize("rule", ["mirror", "projected"])
def test_the_first_step_is_the_closed_form(rule, tiny_config, tiny_data):
    """The gradient in the mixing weights, by autograd at the weights themselves, moves them in closed form."""
    config = tiny_config(
        "search.method=darts1", "search.layers=3", f"search.alphas.rule={rule}", "search.alphas.step=0.5"
    )
    setup = build_search(config, tiny_data, torch.device("cpu"))
    job = cell_search(setup)
    batch = setup.batch(setup.upper, 0)
    weights = {name: w.detach().requires_grad_() for name, w in setup.supernet.mixture().items()}
    logits = setup.supernet.train()(batch.images, mixture=weights)
    loss = torch.nn.functional.cross_entropy(logits, batch.labels)
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)))
    expected = {}
    for name, a in weights.items():
        a, g = a.detach().double(), gradients[name].double()
        if rule == "mirror":
            moved = a * torch.exp(-0.5 * g)
            expected[name] = moved / moved.sum(-1, keepdim=True)
        else:  # no weight leaves the simplex in so small a step: the projection is onto its plane
            moved = a - 0.5 * g
            expected[name] = moved - (moved.sum(-1, keepdim=True) - 1) / a.shape[-1]
    job.loop = None
    job.train_step()
    for name, logits in zip(setup.supernet.alphas, job.x):
        found = torch.softmax(logits.double(), -1)
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)
        assert (found - weights[name]).abs().max() > 1e-4


@pytest.mark.parametrize("method", ["moreau", "darts2+beta", "joint", "gdas", "moreau+pc"])
def test_a_search_with_mirror_steps_resumes_exactly(method, tiny_config, tiny_data, stop_at, tmp_path):
    config = tiny_config(*MIRROR, f"search.method={method}", "search.channels=4", "search.partial_channels=2")
    search(config, tmp_path / "whole", data=tiny_data)
    with pytest.raises(Interrupted):
        search(config, tmp_path / "resumed", data=tiny_data, hooks=[stop_at(3)])
    search(config, tmp_path / "resumed", resume=True, data=tiny_data)
    for name in ("alphas.csv", "metrics.csv"):
        whole, resumed = ((tmp_path / run / name).read_text() for run in ("whole", "resumed"))
        assert strip_times(whole) == strip_times(resumed)


def strip_times(text):
    """Returns the table without its columns of seconds."""
    rows = [line.split(",") for line in text.splitlines()]
    kept = [i for i, name in enumerate(rows[0]) if "second" not in name and "memory" not in name]
    return [[row[i] for i in kept] for row in rows]


def test_spaces_with_lists_for_each_edge_keep_to_their_candidates(tiny_config, tiny_data, tmp_path):
    config = tiny_config("space=robust_darts_s1", "search.channels=4", "search.layers=3", "search.epochs=1", *MIRROR)
    found = search(config, tmp_path / "run", data=tiny_data)
    assert isinstance(found.alphas, AlphaTable)
    space = load_space("robust_darts_s1")
    for name, edges in found.alphas.cells.items():
        for i, edge in enumerate(edges):
            assert list(edge.weights) == list(space.candidates(name, i))
            assert sum(edge.weights.values()) == pytest.approx(1)


def test_a_method_whose_alphas_are_no_logits_keeps_adam_and_notes_it(tiny_config, tiny_data, tmp_path):
    def alphas(*overrides):
        folder = tmp_path / str(len(overrides))
        search(tiny_config("search.method=drnas", *overrides), folder, data=tiny_data)
        return (folder / "alphas.csv").read_text(), (folder / "log.txt").read_text()

    (plain, silent), (mirrored, noted) = alphas(), alphas(*MIRROR)
    assert plain == mirrored
    assert "search.alphas.rule" in noted and "search.alphas.rule" not in silent
