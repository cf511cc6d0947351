"""Searches in a space whose edges have different candidates, different numbers of them too: every method and rule."""

import math

import pytest
import torch

from nas_moreau.architecture import AlphaTable, Genotype, derive, load_space
from nas_moreau.runs.columns import COLUMNS
from nas_moreau.runs.history import Stage
from nas_moreau.runs.tables import read_table
from nas_moreau.search.derive import derive_run
from nas_moreau.search.mixing import dirichlet_weights, gumbel_paths
from nas_moreau.search.stage import search
from nas_moreau.search.supernet_problem import Batch

SPACE = """\
name: ragged
skeleton: darts
nodes: 2
operations:
  normal:
    0-2: [sep_conv_3x3, skip_connect]
    1-2: [none, max_pool_3x3, skip_connect, sep_conv_3x3]
    0-3: [dil_conv_3x3]
    1-3: [none, sep_conv_3x3, skip_connect]
    2-3: [avg_pool_3x3, skip_connect, sep_conv_3x3]
  reduce: [none, skip_connect, avg_pool_3x3]
derivation: {rule: top_edges, edges_per_node: 2, exclude: [none]}
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "ragged.yaml").write_text(SPACE)
    return tmp_path / "ragged.yaml"


@pytest.mark.parametrize("method", ["moreau+beta", "darts2", "gdas", "drnas+beta", "rsws", "darts1+pc", "random"])
def test_every_method_searches_there(method, file, tmp_path, tiny_config, tiny_data):
    wider = ["search.channels=4", "search.partial_channels=2"] if "+pc" in method else []
    penalty = (
        ["search.penalty.macs=0.5", "search.eigenvalue=true", "search.layers=3"] if method.startswith("moreau") else []
    )
    config = tiny_config(f"space={file}", f"search.method={method}", "search.epochs=2", *wider, *penalty)
    result = search(config, tmp_path / "run", data=tiny_data).to_dict()
    space = load_space(file)
    space.check(Genotype.from_json(result["genotype"]))
    if method == "random":
        return
    stage = Stage(tmp_path / "run")
    last = stage.alphas[1]
    last.check(space)
    assert derive(space, last) == derive(space, AlphaTable.from_dict(space, result))
    assert derive(space, last).digest() == result["digest"]
    for row in read_table(tmp_path / "run" / "metrics.csv"):
        assert all(math.isfinite(float(value)) for name, value in row.items() if name in COLUMNS)


@pytest.mark.parametrize("rule", ["space", "edge-normalised", "perturbation", "selection"])
def test_every_rule_derives_there(rule, file, tmp_path, tiny_config, tiny_data):
    budget = ["derive.max_parameters=3000"] if rule != "perturbation" else []
    config = tiny_config(f"space={file}", "search.method=darts1", "search.epochs=1", f"derive.rule={rule}", *budget)
    result = search(config, tmp_path / "run", data=tiny_data).to_dict()
    load_space(file).check(Genotype.from_json(result["genotype"]))
    assert derive_run(tmp_path / "run", config, tiny_data).to_dict()["digest"] == result["digest"]


@pytest.mark.parametrize("mix", [gumbel_paths, dirichlet_weights])
def test_draws_never_fall_on_unused_columns(mix, file):
    from nas_moreau.architecture import Supernet

    space = load_space(file)
    supernet = Supernet(space, 2, 2, alpha_scale=1.0)
    leaves = [p.detach().clone().requires_grad_() for p in supernet.alphas.values()]
    for seed in range(200):
        mixing = mix(space, supernet.operation_logits(leaves), Batch(torch.empty(0), torch.empty(0), 0.5, seed))
        for cell, weights in zip(space.cells, mixing.weights):
            for edge in range(len(space.edges)):
                assert not weights[edge, len(space.candidates(cell, edge)) :].any()
            torch.testing.assert_close(weights.sum(-1), torch.ones(len(space.edges)))
    gradients = torch.autograd.grad(sum((w * torch.randn_like(w)).sum() for w in mixing.weights), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
