"""A bilevel method and a mixing from a user's file (`--import`) are found wherever methods are chosen."""

import json

import pytest

from nas_moreau.cli import main
from nas_moreau.diagnostics import check_hypergradient as directions

OWN = """
import torch
from nas_moreau import Method, Mixing, StepSizes, register_method, register_mixing
from nas_moreau.bilevel import Info


@register_method("toy", evaluations=2, source="a test")
def build(sizes: StepSizes) -> Method:
    step_of = lambda size, k: size(k) if callable(size) else size

    def init(problem, x, y, upper_batch=None, lower_batch=None):
        return 0

    def step(problem, x, y, k, upper_batch=None, lower_batch=None):
        x, y = ([t.detach().requires_grad_() for t in part] for part in (x, y))
        upper, lower = problem.F(x, y, upper_batch), problem.f(x, y, lower_batch)
        upper, lower = (found[0] if isinstance(found, tuple) else found for found in (upper, lower))
        d_x = torch.autograd.grad(upper, x, allow_unused=True, materialize_grads=True)
        d_y = torch.autograd.grad(lower, y)
        alpha, beta = step_of(sizes.alpha, k), step_of(sizes.beta, k)
        new_x = [(t - 0.01 * alpha * d).detach() for t, d in zip(x, d_x)]
        new_y = [(t - beta * d).detach() for t, d in zip(y, d_y)]
        norms = {"d_x": sum(d.square().sum() for d in d_x).sqrt()}
        return new_x, new_y, k + 1, Info(alpha, beta, norms, F=upper.detach(), f=lower.detach())

    return Method(init, step)


@register_mixing("toy-mixing", method="toy", source="a test")
def sigmoids(space, alphas, batch):
    return Mixing([torch.sigmoid(logits) for logits in alphas])
"""
TINY = [
    "space=toy",
    "search.channels=2",
    "search.layers=2",
    "search.epochs=1",
    "search.steps_per_epoch=2",
    "search.batch_size=4",
    "search.image_size=8",
    "retrain.channels=2",
    "retrain.layers=3",
    "retrain.epochs=1",
    "retrain.steps_per_epoch=1",
    "retrain.batch_size=8",
    "logging.tensorboard=false",
]


@pytest.fixture
def command(tmp_path, capsys, registrations_forgotten):
    """Returns a function that runs a command with the user's file and returns what it prints as JSON."""
    (tmp_path / "own.py").write_text(OWN)

    def run(*words):
        with registrations_forgotten():
            code = main([str(word) for word in (*words, "--import", tmp_path / "own.py", "--json")])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)

    return run


def test_the_list_has_both_with_source_and_evaluations(command):
    rows = {row["name"]: row for row in command("list", "methods")}
    for name in ("toy", "toy-mixing"):
        assert (rows[name]["evaluations"], rows[name]["source"]) == (2, "a test")
    assert rows["moreau"]["evaluations"] == 3 and rows["moreau"]["source"]


def test_it_solves_a_small_problem(command):
    result = command("solve", "quadratic", "--n", 3, "--method", "toy", "--steps", 50)
    assert result["method"] == "toy" and result["steps"] <= 50 and len(result["x"]) == 3


def test_it_runs_a_task_with_networks(command, tmp_path):
    words = ["--method", "toy", "--steps", 4, "--n", 40, "--output", tmp_path / "clean"]
    result = command("solve", "hyper-cleaning", *words)
    assert (result["method"], result["steps"], result["evaluations"]) == ("toy", 4, 8)


@pytest.mark.parametrize("method", ["toy+beta", "toy-mixing"])
def test_it_searches(command, tmp_path, method):
    result = command("search", "--output", tmp_path / "search", f"search.method={method}", *TINY)
    assert result["method"] == method and set(result["alphas"]) == {"normal", "reduce"}


@pytest.mark.slow
def test_its_direction_is_checked(command, monkeypatch):
    full = directions.check_hypergradient
    short = {"layers": 1, "steps": 2, "penalties": (100.0, 1000.0)}
    monkeypatch.setattr(
        directions, "check_hypergradient", lambda names, seed, note: full(names, seed, note=note, **short)
    )
    result = command("check-hypergradient", "--method", "toy,toy-mixing", "--seed", 1)
    rows = {row["method"]: row for row in result["rows"] if row["part"] == "as run"}
    assert set(rows) == {"toy", "toy-mixing"} and all(row["cosine"] is not None for row in rows.values())


@pytest.mark.slow
def test_it_is_compared_and_timed(command, tmp_path):
    words = ["--methods", "toy,random", "--seeds", "0", "--output", tmp_path / "compared"]
    assert [row["method"] for row in command("compare", *words, *TINY)["rows"]] == ["toy", "random"]
    rows = command("bench", "--size", "2,3,4", "--space", "toy", "--rounds", 1, "--methods", "toy")["rows"]
    assert {row["method"] for row in rows} == {"toy"} and all(row["milliseconds"] > 0 for row in rows)
    assert all(row["resident_bytes"] is not None for row in rows)


def test_a_name_that_is_taken_and_an_unknown_need_are_refused(tmp_path, capsys, registrations_forgotten):
    own = tmp_path / "own.py"
    for given in ("'moreau', evaluations=1, source=''", "'mine', evaluations=1, source='', needs=['luck']"):
        own.write_text(f"from nas_moreau import register_method\nregister_method({given})\n")
        with registrations_forgotten():
            assert main(["list", "methods", "--import", str(own)]) == 2
        err = capsys.readouterr().err
        assert "moreau" in err or "luck" in err
