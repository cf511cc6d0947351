"""A method's name means the same method everywhere, with the constants of the configuration that is shipped."""

import pytest
import torch

from nas_moreau.bilevel import Bilevel
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.config import SearchConfig, load_config
from nas_moreau.diagnostics import bench_cases, check_hypergradient
from nas_moreau.problems import method_for, quadratic
from nas_moreau.problems.step_sizes import tuned_step_sizes
from nas_moreau.search.methods import build_method

AIM = torch.tensor([3.0, 2.0], dtype=torch.float64)  # two entries: a step on the simplex moves them apart


def tuned(task, name):
    return METHODS[name].build(tuned_step_sizes(task, 10, METHODS[name]))


CONTEXTS = {
    "small problem": lambda name: method_for(name, quadratic(2)),
    "hyper-cleaning": lambda name: tuned("hyper-cleaning", name),
    "few-shot": lambda name: tuned("few-shot", name),
    "search": lambda name: build_method(SearchConfig(method=name), 10)[0],
    "check-hypergradient": lambda name: check_hypergradient.recorded(name, check_hypergradient.preset_search()).method,
}


def evaluations(method):
    """Name of the objective and whether it was evaluated at the new x, for each evaluation of a step."""
    calls = []

    def counted(name, value):
        def objective(x, y, batch):
            calls.append((name, float(x[0][0].detach()) != 1.0))
            return value(x[0], y[0]).sum()

        return objective

    problem = Bilevel(
        counted("F", lambda x, y: (x - AIM) ** 2 + y**2),
        counted("f", lambda x, y: (y - x) ** 2),
        f_theta=counted("f at theta", lambda x, y: (y - x) ** 2),
    )
    start = [torch.ones(2, dtype=torch.float64)]
    state = method.init(problem, start, start)
    calls.clear()
    method.step(problem, start, start, state)
    return calls


@pytest.mark.parametrize("context", CONTEXTS)
def test_moreau_is_the_lagged_order_everywhere(context):
    """One evaluation each of F, f and f at theta, all at the old x; gauss-seidel has six, three of them at the new."""
    for name in ("moreau", "moreau-lagged"):
        found = evaluations(CONTEXTS[context](name))
        # beyond the three there may be gradients for the automatic constants, at the old x and at the new one
        assert [name for name, _ in found[:3]] == ["f at theta", "F", "f"]
        assert not any(moved for _, moved in found[:3])
    found = evaluations(CONTEXTS[context]("moreau-gauss-seidel"))
    assert [name for name, _ in found[:4]] == ["f at theta", "F", "f", "f at theta"]
    assert all(moved for name, moved in found[4:6]) and [name for name, _ in found[4:6]] == ["F", "f"]


def step_of(method):
    problem = Bilevel(lambda x, y, b: ((x[0] - AIM) ** 2 + y[0] ** 2).sum(), lambda x, y, b: ((y[0] - x[0]) ** 2).sum())
    start = [torch.ones(2, dtype=torch.float64)]
    return method.step(problem, start, start, method.init(problem, start, start))[3]


def test_directions_are_checked_with_the_constants_of_the_shipped_preset():
    shipped = load_config("nas_bench_201_cpu").search
    info = step_of(check_hypergradient.recorded("moreau", check_hypergradient.preset_search()).method)
    moreau = shipped.moreau
    assert (info.gamma, info.c) == (moreau.gamma, moreau.c)
    step = shipped.alphas.lr if shipped.alphas.rule == "adam" else shipped.alphas.step
    assert (info.alpha, info.beta) == (step, moreau.c / (1 + moreau.c) * shipped.weights.lr)
    assert check_hypergradient.preset_search().moreau == moreau


def test_the_benchmark_runs_what_a_search_by_default_runs():
    shipped = SearchConfig()
    info = step_of(bench_cases.method_of("moreau-jacobi"))
    assert (info.alpha, info.gamma, info.c) == (shipped.alphas.lr, shipped.moreau.gamma, shipped.moreau.c)
    assert info.beta == shipped.moreau.c / (1 + shipped.moreau.c) * shipped.weights.lr
