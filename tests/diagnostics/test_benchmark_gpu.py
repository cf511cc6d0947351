"""The measurement plan for a GPU, run on the CPU: what it checks, what it chooses, and the configuration it writes."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from nas_moreau.bilevel import Bilevel
from nas_moreau.config import load_config
from nas_moreau.diagnostics import tune_performance as bench_settings
from nas_moreau.diagnostics import verify_performance as settings_check
from nas_moreau.diagnostics.verify_performance import CPU, Errors, errors, retraining_step, search_step
from nas_moreau.presets import preset_text

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_gpu.py"
TINY = [
    "space=toy",
    "search.channels=2",
    "search.layers=2",
    "search.batch_size=4",
    "retrain.channels=2",
    "retrain.layers=2",
    "retrain.batch_size=4",
]


def row(stage, name, milliseconds, passed=True):
    return bench_settings.SettingsRow(stage, name, {"precision": name}, passed=passed, milliseconds=milliseconds)


def test_the_choice_is_the_soonest_end_of_both_stages_among_what_was_right_in_both():
    rows = [
        row("search", "a", 10.0),
        row("retrain", "a", 10.0),
        row("search", "b", 30.0),
        row("retrain", "b", 4.0),
        row("search", "wrong", 1.0),
        row("retrain", "wrong", 1.0, passed=False),
        row("search", "failed", None),
        row("retrain", "failed", 1.0),
        row("retrain", "only here", 1.0),
    ]
    # a: 100 * 10 + 1000 * 10 = 11 s; b: 100 * 30 + 1000 * 4 = 7 s
    chosen, hours = bench_settings.choose(rows, {"search": 100, "retrain": 1000})
    assert chosen == {"precision": "b"} and hours == pytest.approx(7 / 3600)
    assert bench_settings.choose(rows, {"search": 1000, "retrain": 100})[0] == {"precision": "a"}
    assert bench_settings.choose(rows[4:], {"search": 1, "retrain": 1}) == (None, None)


def test_the_steps_of_the_published_settings():
    # 22,500 images in batches of 64 for 50 epochs; 50,000 in batches of 96 for 600
    assert bench_settings.steps_of(load_config("cifar10")) == {"search": 50 * 351, "retrain": 600 * 520}


def test_variants_have_tf32_where_there_is_an_accelerator():
    cpu, other = bench_settings.variants(CPU), bench_settings.variants(torch.device("meta"))
    assert len(cpu) == 3 * 4 and len(other) == 4 * 4 and len(bench_settings.variants(CPU, compiled=False)) == 6
    assert not any(variant["tf32"] for variant in cpu)
    assert len({bench_settings.name_of(variant) for variant in other}) == 16


def test_errors_are_relative_and_what_is_not_finite_is_never_right():
    exact = settings_check.Step(torch.tensor([2.0, 4.0]), {"v": torch.tensor([3.0, 4.0])})
    found = errors(settings_check.Step(torch.tensor([2.0, 4.4]), {"v": torch.tensor([3.0, 4.5])}), exact)
    assert found.loss == pytest.approx(0.1) and found.vectors["v"] == pytest.approx(0.1)
    assert found.within((0.11, 0.11)) and not found.within((0.09, 0.11)) and not found.within((0.11, 0.09))
    lost = errors(settings_check.Step(torch.tensor([2.0, float("nan")]), {"v": torch.tensor([3.0, 4.0])}), exact)
    assert not lost.within((1e9, 1e9)) and Errors(0.0, {"v": float("inf")}).within((1, 1)) is False


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_is_right_in_its_precision_and_a_changed_loss_is_not(precision, monkeypatch):
    config = load_config(overrides=TINY)
    exact, theta = search_step(config, CPU, 4, None, torch.float64)
    trial = bench_settings.configured(config, {"precision": precision})
    found = errors(search_step(trial, CPU, 4, theta, torch.float32)[0], exact)
    allowed = settings_check.tolerance(trial.performance, False)
    assert found.within(allowed) and found.loss > 0
    assert set(found.vectors) == {"F_x", "F_y", "f_x", "f_y", "f_x(theta)", "f_y(theta)", "d_x"}
    posed = settings_check.supernet_problem

    def wrong(*args):
        made = posed(*args)
        right = made.problem.f
        wrong_problem = Bilevel(made.problem.F, lambda *at: right(*at)[0] * 1.6, f_theta=made.problem.at_theta)
        return made._replace(problem=wrong_problem)

    monkeypatch.setattr(settings_check, "supernet_problem", wrong)
    assert not errors(search_step(trial, CPU, 4, theta, torch.float32)[0], exact).within(allowed)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_retraining_step_is_right_in_its_precision(precision):
    config = load_config(overrides=TINY)
    cell = bench_settings.random_cell(bench_settings.load_space("toy"), 0)
    exact = retraining_step(config, cell, CPU, 4, 16, torch.float64)
    trial = bench_settings.configured(config, {"precision": precision})
    found = errors(retraining_step(trial, cell, CPU, 4, 16, torch.float32), exact)
    assert found.vectors["gradient"] > 0 and found.within(settings_check.tolerance(trial.performance, False))


def test_the_script_writes_a_configuration_that_is_the_preset_with_the_fastest_settings(
    tmp_path, monkeypatch, capsys, script_of
):
    script = script_of("benchmark_gpu")
    small = load_config("smoke", overrides=TINY)
    monkeypatch.setattr(script, "load_config", lambda preset: small)
    monkeypatch.setattr(bench_settings, "WARM", 1)
    output, whole = tmp_path / "gpu.yaml", tmp_path / "gpu.json"
    arguments = ["--preset", "smoke", "--device", "cpu", "--rounds", "1", "--no-compile", "--check-batch", "4"]
    monkeypatch.setattr(
        bench_settings,
        "variants",
        lambda device, compiled, original=bench_settings.variants: [
            variant for variant in original(device, compiled) if variant["channels_last"]
        ],
    )
    assert script.main([*arguments, "--image-size", "16", "--output", str(output), "--json", str(whole)]) == 0
    result = json.loads(whole.read_text())
    assert [(r["stage"], r["variant"]["precision"]) for r in result["rows"]] == [
        ("search", "float32"),
        ("search", "bfloat16"),
        ("retrain", "float32"),
        ("retrain", "bfloat16"),
        ("retrain", "float16"),
    ]
    assert all(r["n"] == 1 and r["milliseconds"] > 0 and r["fault"] is None for r in result["rows"])
    assert result["rows"][0]["passed"] and result["chosen"]["precision"] in ("float32", "bfloat16")
    command = f"nas-moreau run --config {output} --data shapes"
    assert command in capsys.readouterr().out and output.read_text().startswith(f"# {command}\n")
    written, preset = yaml.safe_load(output.read_text()), yaml.safe_load(preset_text("smoke"))
    assert written.pop("performance") == preset.pop("performance") | result["chosen"] and written == preset
    assert load_config(path=output).performance.precision == result["chosen"]["precision"]


def test_a_variant_that_fails_is_told_and_not_chosen(monkeypatch):
    def fail(*args):
        raise RuntimeError("out of memory\nand much more")

    variants = bench_settings.variants(CPU, compiled=False)[:1]
    monkeypatch.setattr(bench_settings, "variants", lambda *args: variants)
    monkeypatch.setattr(bench_settings, "prepared", fail)
    result = bench_settings.benchmark_settings(load_config(overrides=TINY), CPU, 1, 4, 16)
    assert [row.fault for row in result.rows] == ["out of memory"] * 2 and result.chosen is None
