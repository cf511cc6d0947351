"""The collapse monitor: signs and verdicts on hand-made weights, known eigenvalues, the guard and its resume."""

import json
import math
from dataclasses import replace

import pytest
import torch

from nas_moreau.architecture import AlphaTable, Genotype, Supernet, derive, load_space
from nas_moreau.runs import load_checkpoint
from nas_moreau.runs.history import Stability, Stage
from nas_moreau.runs.tables import read_table
from nas_moreau.search.collapse import PATIENCE, CollapseGuard, Health, assess, signs
from nas_moreau.search.hessian import dominant_eigenvalue, loss_of_alphas
from nas_moreau.search.stage import search
from nas_moreau.training.signals import Interrupted

SPACE = load_space("nas_bench_201")
NONE, SKIP, ONE, THREE, POOL = range(5)


def weights_of(strongest, largest=0.6):
    """NAS-Bench-201 weights with the given operation strongest on each edge, the others alike."""
    rest = (1 - largest) / 4
    return {"cell": [[largest if k == best else rest for k in range(5)] for best in strongest]}


def cell_of(strongest):
    return derive(SPACE, table_of(strongest))


def table_of(strongest, largest=0.6):
    return AlphaTable.from_dict(SPACE, {"alphas": weights_of(strongest, largest)})


def test_signs_of_hand_made_weights():
    strongest = [SKIP, SKIP, THREE, NONE, ONE, SKIP]
    row = signs(SPACE, table_of(strongest), cell_of(strongest))
    assert row["idle_lead_cell"] == row["idle_share_cell"] == pytest.approx(4 / 6)
    assert row["margin_cell"] == pytest.approx(0.5)
    assert row["alpha_entropy_cell"] == pytest.approx(-0.6 * math.log(0.6) - 0.4 * math.log(0.1))


def test_an_operation_that_cannot_be_chosen_leads_no_edge():
    """In the DARTS space `none` often weighs most, and is excluded: the next one counts."""
    space = load_space("toy")
    assert space.derivation.exclude == ("none",) and space.operations[3] == "sep_conv_3x3"
    weights = {cell: [[0.6, 0.1, 0.1, 0.2]] * len(space.edges) for cell in space.cells}
    table = AlphaTable.from_dict(space, {"alphas": weights})
    row = signs(space, table, derive(space, table))
    assert row["idle_lead_normal"] == row["idle_share_normal"] == 0


@pytest.mark.parametrize("idle_edges", range(7))
@pytest.mark.parametrize("idle", [SKIP, NONE])
def test_the_verdict_turns_to_collapsed_above_one_half_and_stays(idle_edges, idle):
    strongest = [idle] * idle_edges + [THREE] * (6 - idle_edges)
    health = assess(cell_of(strongest), table_of(strongest))
    assert health.verdict == ("collapsed" if idle_edges > 3 else "healthy")
    assert health.collapsed == (idle_edges > 3) == assess(cell_of(strongest)).collapsed
    assert health.idle_share == pytest.approx(idle_edges / 6)
    name = "none" if idle == NONE else "skip_connect"
    assert health.cells["cell"].idle == ({name: idle_edges} if idle_edges else {})
    assert str(health).startswith(health.verdict)


@pytest.mark.parametrize(
    "largest, verdict", [(0.21, "undecided"), (0.29, "undecided"), (0.31, "healthy"), (0.9, "healthy")]
)
def test_the_verdict_turns_to_healthy_with_the_largest_weight(largest, verdict):
    strongest = [THREE, ONE, SKIP, THREE, POOL, ONE]
    health = assess(cell_of(strongest), table_of(strongest, largest))
    assert health.verdict == verdict
    assert (health.largest_weight, health.uniform_weight) == (largest, pytest.approx(0.2))
    # what was trained decides, whatever the weights are; it does not cure a collapse
    assert assess(cell_of(strongest), table_of(strongest, largest), trained=True).verdict == "healthy"
    assert assess(cell_of([SKIP] * 6), table_of(strongest, largest), trained=True).verdict == "collapsed"
    # a collapse is one even if little was decided
    assert assess(cell_of([SKIP] * 6), table_of([SKIP] * 6, largest)).verdict == "collapsed"
    # a cell without a search has no weights that could be undecided
    assert assess(cell_of(strongest)).verdict == "healthy"


def test_a_reduction_cell_alone_is_no_collapse_and_noise_is_one():
    edges = [(source, node) for node in (2, 3, 4, 5) for source in (0, 1)]

    def genotype(normal, reduce):
        cells = {"normal": normal, "reduce": reduce}
        return Genotype.from_json(
            {
                "version": 1,
                "space": "robust_darts_s4",
                "cells": {
                    n: {"edges": [[op, a, b] for a, b in edges], "concat": [2, 3, 4, 5]} for n, op in cells.items()
                },
            }
        )

    assert not assess(genotype("sep_conv_3x3", "skip_connect")).collapsed
    weights = {"alphas": {cell: [[0.9, 0.1]] * 14 for cell in ("normal", "reduce")}}
    table = AlphaTable.from_dict(load_space("robust_darts_s4"), weights)
    health = assess(genotype("noise", "sep_conv_3x3"), table)
    assert health.verdict == "collapsed" and health.idle_share == 1
    assert health.cells["normal"].idle == {"noise": 8} and health.cells["reduce"].idle == {}


def test_the_health_is_the_same_after_json():
    health = assess(cell_of([SKIP, NONE, THREE, ONE, ONE, POOL]), table_of([SKIP] * 6))
    assert Health.from_dict(json.loads(json.dumps(health.to_dict()))) == health
    assert Health.from_dict(assess(cell_of([ONE] * 6)).to_dict()) == assess(cell_of([ONE] * 6))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_dominant_eigenvalue_of_a_known_hessian(sign):
    draw = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn((6, 6), generator=draw, dtype=torch.float64))[0]
    values = sign * torch.tensor([5.0, -2.0, 1.0, 0.5, 0.1, 0.0], dtype=torch.float64)
    hessian = basis @ values.diag() @ basis.T

    def loss(x):
        flat = torch.cat([part.flatten() for part in x])
        return 0.5 * flat @ hessian @ flat + flat.sum()

    x = [torch.zeros((2, 2), dtype=torch.float64), torch.ones(2, dtype=torch.float64)]
    assert dominant_eigenvalue(loss, x, iterations=40) == pytest.approx(5.0 * sign, rel=1e-6)
    assert abs(dominant_eigenvalue(loss, x, iterations=2)) <= 5.0 + 1e-9


def test_the_eigenvalue_of_a_supernet_is_that_of_its_exact_hessian():
    torch.manual_seed(0)
    supernet = Supernet(load_space("toy"), 2, 3, 3).double()
    images, labels = torch.randn((6, 3, 8, 8), dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    loss, x = loss_of_alphas(supernet, images, labels), [p.detach() for p in supernet.alphas.values()]
    sizes = [part.numel() for part in x]

    def flat(vector):
        return loss([part.view_as(like) for part, like in zip(vector.split(sizes), x)])

    hessian = torch.autograd.functional.hessian(flat, torch.cat([part.flatten() for part in x]))
    values = torch.linalg.eigvalsh(hessian)
    expected = values[values.abs().argmax()].item()
    assert dominant_eigenvalue(loss, x, iterations=60) == pytest.approx(expected, rel=1e-3)
    assert all(torch.equal(buffer, before[name]) for name, buffer in supernet.named_buffers())


def test_the_dominant_eigenvalue_of_a_flat_function_is_zero():
    assert dominant_eigenvalue(lambda x: (x[0] * 2).sum(), [torch.ones(3, dtype=torch.float64)]) == 0


# --- stability -------------------------------------------------------------------------------------------------------


def test_stability_counts_epochs_and_edges():
    a, b, c = ([THREE, ONE, SKIP, THREE, POOL, ONE][:k] + [POOL] * (6 - k) for k in (4, 5, 6))
    # the last edge of c differs from b's, the last but one is pool in all three
    history = [table_of(cell) for cell in (a, a, b, c, c)]
    found = Stability.of(SPACE, history).to_dict()
    assert found == {"epochs": 5, "epochs_unchanged": 2, "window": 5, "edges_unchanged": pytest.approx(5 / 6)}
    assert Stability.of(SPACE, history[:1]).epochs_unchanged == 1
    assert Stability.of(SPACE, [table_of(a)] * 7).to_dict() == {
        "epochs": 7,
        "epochs_unchanged": 7,
        "window": 5,
        "edges_unchanged": 1.0,
    }


# --- the guard -------------------------------------------------------------------------------------------------------


def test_the_guard_counts_collapsed_epochs_in_a_row_and_keeps_the_best():
    bad, good = cell_of([SKIP] * 6), cell_of([THREE] * 6)
    guard, alphas = CollapseGuard(), [torch.zeros(1)]
    for epoch, (cell, accuracy) in enumerate([(bad, 0.2), (bad, 0.3), (good, 0.3), (bad, 0.1), (bad, 0.1)]):
        alphas = [torch.tensor([float(epoch)])]
        guard = guard.after(epoch, cell, accuracy, alphas)
        assert not guard.stops("stop")
    assert (guard.streak, guard.epoch, guard.accuracy) == (2, 1, 0.3) and guard.alphas[0].item() == 1
    guard = guard.after(5, bad, 0.1, alphas)
    assert guard.streak == PATIENCE and guard.stops("stop") and not guard.stops("best") and not guard.stops("off")


SETTINGS = [
    "search.layers=3",
    "search.epochs=6",
    "search.method=darts1",
    "search.alphas.lr=0.3",
    "search.alphas.lr_min=0.3",
    "logging.tensorboard=false",
]


@pytest.fixture
def tiny(tiny_config):
    return lambda *overrides: tiny_config(*SETTINGS, *overrides)


def rows_of(folder):
    return read_table(folder / "metrics.csv")


def test_the_guard_best_keeps_the_epoch_of_the_best_one_hot_accuracy(tmp_path, tiny, tiny_data):
    result = search(tiny("search.guard=best"), tmp_path, data=tiny_data)
    accuracies = [float(row["one_hot_accuracy"]) for row in rows_of(tmp_path)]
    best = accuracies.index(max(accuracies))
    assert result.guard == {"rule": "best", "epoch": best, "one_hot_accuracy": accuracies[best]}
    space = load_space("toy")
    table = Stage(tmp_path).alphas[best]
    assert table == result.alphas and result.digest == derive(space, table).digest()
    kept = load_checkpoint(tmp_path / "checkpoints")[0]["alphas"]
    assert derive(space, kept).digest() == result.digest


@pytest.fixture
def idle_space(tmp_path_factory):
    """A space of idle operations: every cell derived from it has collapsed."""
    path = tmp_path_factory.mktemp("spaces") / "idle.yaml"
    path.write_text(
        "name: idle\nskeleton: darts\nnodes: 2\noperations: [skip_connect, noise]\nedges: all\nconcat: [2, 3]\n"
        "reduction: [1/3, 2/3]\nderivation: {rule: top_edges, edges_per_node: 2, exclude: []}\n"
    )
    return f"space={path}"


def test_the_guard_stop_ends_the_search(tmp_path, idle_space, tiny, tiny_data):
    result = search(tiny("search.guard=stop", idle_space), tmp_path / "stop", data=tiny_data)
    assert result.steps == 2 * PATIENCE and len(rows_of(tmp_path / "stop")) == PATIENCE
    assert result.guard == {"rule": "stop", "stopped": True, "collapsed_epochs": PATIENCE}
    assert result.health.verdict == "collapsed"
    assert json.loads((tmp_path / "stop" / "status.json").read_text())["state"] == "finished"
    result = search(tiny(idle_space), tmp_path / "off", data=tiny_data)
    assert result.steps == 12 and result.guard is None


@pytest.mark.parametrize("guard", ["stop", "best"])
@pytest.mark.parametrize("stop_at_step", [4, 5])
def test_a_resumed_search_with_a_guard_gives_the_same_bytes(
    guard, stop_at_step, tmp_path, idle_space, tiny, tiny_data, stop_at
):
    config = tiny(f"search.guard={guard}", "search.eigenvalue=true", *([idle_space] if guard == "stop" else []))
    whole = search(config, tmp_path / "whole", data=tiny_data)

    with pytest.raises(Interrupted):
        search(config, tmp_path / "parts", data=tiny_data, hooks=[stop_at(stop_at_step)])
    parts = search(config, tmp_path / "parts", resume=True, data=tiny_data)
    assert replace(parts, wall_seconds=0.0, peak_memory_bytes=0) == replace(
        whole, wall_seconds=0.0, peak_memory_bytes=0
    )
    for a, b in zip(rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts"), strict=True):
        a.pop("wall_seconds"), b.pop("wall_seconds")
        assert a == b and float(a["hessian_eigenvalue"]) != 0


def test_a_run_says_how_it_looks(tmp_path, tiny, tiny_data):
    result = search(tiny(), tmp_path, data=tiny_data)
    found, space = Stage(tmp_path), load_space("toy")
    health = assess(result.genotype, found.final_alphas)
    assert found.verdict == health.verdict and result.verdict == str(health)
    assert result.health == Health.from_dict(result.to_dict()["health"]) == health
    assert result.stability == Stability.of(space, found.alphas.values()).to_dict()
    assert result.stability["epochs"] == 6
    for row in rows_of(tmp_path):
        gap = float(row["held_out_accuracy"]) - float(row["one_hot_accuracy"])
        assert float(row["discretisation_gap"]) == pytest.approx(gap, abs=1e-12)
        assert {"idle_share_normal", "margin_reduce", "idle_lead_normal", "alpha_entropy_normal"} <= set(row)
        assert "hessian_eigenvalue" not in row


def test_a_method_without_alphas_is_not_guarded(tmp_path, idle_space, tiny, tiny_data):
    result = search(tiny("search.guard=stop", "search.method=rsws", idle_space), tmp_path, data=tiny_data)
    assert result.steps == 12 and result.guard is None and len(rows_of(tmp_path)) == 6


def test_off_may_be_written_plainly(tiny):
    assert tiny("search.guard=off").search.guard == "off"
