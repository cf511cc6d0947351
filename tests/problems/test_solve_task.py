"""The solve stage returns plain data and refuses what cannot be in a sentence."""

import json

import pytest

from nas_moreau.errors import InputError
from nas_moreau.problems.small_tasks import TASKS, solve_task

KEYS = {"task", "n", "method", "x", "y", "error", "residual", "steps", "seconds", "peak_memory_bytes", "message"}


@pytest.mark.parametrize(("task", "n"), [("sine", 3), ("quadratic", 3), ("merely-convex", 2), ("lasso", 4)])
def test_known_solutions(task, n):
    found = solve_task(task, n, debias=True)
    assert set(found) == KEYS and json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["error"] < 1e-4 and found["residual"] is not None and found["n"] == n
    assert len(found["y"]) == (2 * n if task == "merely-convex" else n)


def test_group_lasso_has_no_known_solution_and_is_seeded():
    first, again, other = (solve_task("group-lasso", 24, steps=20, seed=seed) for seed in (1, 1, 2))
    assert first["error"] is None and first["x"] == again["x"] != other["x"]
    assert min(first["x"]) > 0 and first["residual"] > 0


def test_methods_without_penalty_have_no_residual():
    assert solve_task("quadratic", 2, "bome", steps=30)["residual"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sin",), "Did you mean 'sine'"), (("sine", 1, "moreau-jacoby"), "moreau-jacobi"), (("lasso", 3), "even"),
        (("sine", 0), "at least 1"), (("lasso", 2, "rhg"), "smooth"), (("sine", 1, "bome", 10, 0, True), "bias"),
    ],
)  # fmt: skip
def test_refusals(arguments, words):
    with pytest.raises(InputError, match=words):
        solve_task(*arguments)


def test_every_task_says_what_it_is():
    assert all(task.what and task.n > 0 and task.steps > 0 for task in TASKS.values())
