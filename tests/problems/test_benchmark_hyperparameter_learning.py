"""The benchmark of hyper-parameter learning prints its tables, keeps finished rows and computes them rightly."""

import sys

import pytest

from nas_moreau.problems import few_shot_job, learn


@pytest.fixture
def script(monkeypatch, script_of):
    from nas_moreau.data import generated_shapes

    monkeypatch.setattr(generated_shapes, "TRAIN_SHAPES", 240)
    monkeypatch.setattr(generated_shapes, "TEST_SHAPES", 60)
    for name, value in (("TEST_TASKS", 20), ("MEASURED_TASKS", 4), ("TEST_QUERIES", 3)):
        monkeypatch.setattr(few_shot_job, name, value)
    return script_of("benchmark_hyperparameter_learning")


def test_both_tables_and_rows_that_are_kept(script, tmp_path, monkeypatch, capsys):
    words = [
        "--quick",
        "--methods",
        "moreau,lower-only",
        "--output",
        str(tmp_path / "rows"),
        "--json",
        str(tmp_path / "all"),
    ]
    monkeypatch.setattr(sys, "argv", ["benchmark_hyperparameter_learning", *words])
    assert script.main() == 0
    out = capsys.readouterr().out
    assert "hyper-cleaning, 50 % of 200 labels corrupted on shapes" in out and "2-way 1-shot" in out
    assert out.count("| moreau |") == out.count("| lower-only |") == 2 and "| 2 | 30 |" in out

    def never(job, folder, hooks):
        raise AssertionError("a finished row was run again")

    monkeypatch.setattr(learn, "run_in", never)
    assert script.main() == 0
    assert capsys.readouterr().out == out


def test_numbers_by_hand(script):
    assert script.spread([1.0]) == "1.00" and script.spread([1.0, 3.0]) == "2.00 +- 1.41"
    curve = [{"accuracy": 0.5, "cpu_seconds": 1.0}, {"accuracy": 0.9, "cpu_seconds": 2.0}]
    assert script.to_goal({"curve": curve}, 0.8) == 2.0 and script.to_goal({"curve": curve}, 0.95) is None
