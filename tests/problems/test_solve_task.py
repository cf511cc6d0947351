"""The table of tasks: options are checked like a configuration, results are plain data."""

import json

import pytest

from nas_moreau.errors import InputError
from nas_moreau.problems.tasks import TASKS, SmallTask, solve_on_data, solve_options, solve_task

KEYS = {"task", "n", "method", "x", "y", "error", "F", "residual", "steps", "seconds", "peak_memory_bytes", "message"}
KEYS |= {"status", "evaluations", "certificate"}


@pytest.mark.parametrize(("task", "n"), [("sine", 3), ("quadratic", 3), ("merely-convex", 2), ("lasso", 4)])
def test_known_solutions(task, n):
    found = solve_task(task, {"n": n, "method": "moreau", "debias": True}).to_dict()
    assert set(found) == KEYS and json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["error"] < 1e-4 and found["residual"] is not None and found["n"] == n
    assert len(found["y"]) == (2 * n if task == "merely-convex" else n)


@pytest.mark.parametrize(("task", "n"), [("sine", 3), ("quadratic", 3), ("merely-convex", 2), ("lasso", 4)])
def test_without_a_method_the_solver_decides_and_certifies(task, n):
    found = solve_task(task, {"n": n})
    assert found.status == "solved" and found.error < 1e-6 and found.method == "automatic"
    assert found.certificate["lower_residual"] < 1e-7 and found.evaluations > 0


def test_group_lasso_has_no_known_solution_and_is_seeded():
    first, again, other = (solve_task("group-lasso", {"n": 24, "steps": 20, "seed": seed}) for seed in (1, 1, 2))
    assert first.error is None and first.F > 0 and first.x == again.x != other.x
    assert min(first.x) > 0 and first.residual > 0


def test_methods_without_penalty_have_no_residual():
    assert solve_task("quadratic", {"n": 2, "method": "bome", "steps": 30}).residual is None


@pytest.mark.parametrize(
    ("task", "options", "named"),
    [
        ("sin", {}, ["'sin'", "'sine'"]),
        ("sine", {"n": 1, "method": "moreau-jacoby"}, ["moreau-jacoby", "'moreau-jacobi'"]),
        ("sine", {"n": 0}, ["'n'", "0"]),
        ("sine", {"step": 5}, ["'step'", "'steps'"]),
        ("sine", {"ways": 5}, ["'ways'"]),
        ("lasso", {"n": 3}, ["lasso", "even"]),
        ("lasso", {"n": 2, "method": "rhg"}, ["lasso", "rhg"]),
        ("sine", {"n": 1, "method": "bome", "steps": 10, "debias": True}, ["bome", "debias"]),
        ("few-shot", {}, ["few-shot", "solve_on_data"]),
        ("sine", {"n": 10**9}, ["1,000,000,000", "10000000"]),
        ("quadratic", {"n": 10**5}, ["100,000", "10000"]),
        ("group-lasso", {"n": 10**6}, ["1,000,000"]),
    ],
)
def test_refusals(task, options, named):
    with pytest.raises(InputError) as caught:
        solve_task(task, options)
    assert all(text in str(caught.value) for text in named) and caught.value.cure


def test_a_problem_with_a_known_answer_has_no_run_folder(tmp_path):
    with pytest.raises(InputError, match="solve_task"):
        solve_on_data("sine", {}, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_what_it_is_and_describes_its_options(name):
    task = TASKS[name]
    assert task.what
    assert all(field.description for field in task.config.model_fields.values())
    options = solve_options(name, {})
    alone = isinstance(task, SmallTask) and name != "group-lasso"
    assert options.method == ("automatic" if alone else "moreau") and options.seed == 0
    assert task.n > 0 and task.steps > 0 if isinstance(task, SmallTask) else options.steps > 0


def test_labels_of_data_that_are_handed_in_stay_as_they_are(make_data, tmp_path):
    found = solve_on_data("hyper-cleaning", {"steps": 1, "device": "cpu"}, tmp_path / "own", data=make_data(40))
    assert found["corrupt"] == 0 and found["n"] == 40


def test_n_of_the_result_is_that_of_the_problem():
    found = solve_task("group-lasso", {"n": 65, "steps": 2})
    assert found.n == len(found.y) == 60


@pytest.mark.parametrize("option", [{"debias": True}, {"polish": False}])
def test_what_only_a_method_can_do_is_refused_without_one(option):
    with pytest.raises(InputError) as caught:
        solve_task("quadratic", {"n": 2, **option})
    assert "debias" in caught.value.cure and "method" in caught.value.cure
    assert solve_task("quadratic", {"n": 2, "method": "moreau", "steps": 5, **option}).steps > 0
