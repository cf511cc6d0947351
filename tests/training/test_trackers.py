"""Experiment trackers get what metrics.csv has, once, also from a stage that was stopped and resumed."""

from __future__ import annotations

import sys
import types

import pytest

from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.errors import InputError
from nas_moreau.runs.tables import read_table
from nas_moreau.training.retrain import retrain
from nas_moreau.training.signals import Interrupted

CELL = published_cell("DARTS_V2")


def run_stopped_once(config, folder, data, stop_at):
    with pytest.raises(Interrupted):
        retrain(config, CELL, folder, data=data, hooks=[stop_at(3)])
    return retrain(config, CELL, folder, resume=True, data=data)


def test_mlflow_has_one_run_with_settings_epochs_and_result(tiny_config, tiny_data, tmp_path, stop_at, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    config = tiny_config("logging.trackers=[mlflow]", "retrain.epochs=3", "retrain.evaluate_every=1")
    result = run_stopped_once(config, tmp_path / "run", tiny_data, stop_at)
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["retrain.epochs"] == "3"
    assert run.data.metrics["final/test_accuracy"] == result.test_accuracy
    sent = client.get_metric_history(run.info.run_id, "accuracy/test_accuracy")
    rows = read_table(tmp_path / "run" / "metrics.csv")
    assert [(point.step, f"{point.value:.6g}") for point in sent] == [
        (2 * (int(row["epoch"]) + 1), f"{float(row['test_accuracy']):.6g}") for row in rows
    ]


def test_weights_and_biases_offline_has_one_identifier(tiny_config, tiny_data, tmp_path, stop_at, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny_config("logging.trackers=[wandb]", "retrain.epochs=3", "retrain.evaluate_every=1")
    run_stopped_once(config, tmp_path / "run", tiny_data, stop_at)
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1 and len(files) in (1, 2)  # one folder a process, named by the second
    content = b"".join(file.read_bytes() for file in files)
    for name in (b"accuracy/test_accuracy", b"retrain", b"test_accuracy"):
        assert name in content


def test_a_tracker_that_fails_ends_no_training(tiny_config, tiny_data, tmp_path, monkeypatch, capsys):
    plain = retrain(tiny_config(), CELL, tmp_path / "plain", data=tiny_data)
    sent = []

    class Run:
        id = "one"

        def log(self, values, step):
            sent.append(step)
            raise RuntimeError("the server is down")

    fake = types.ModuleType("wandb")
    fake.init, fake.Settings = (lambda **given: Run()), (lambda **given: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    found = retrain(tiny_config("logging.trackers=[wandb]"), CELL, tmp_path / "run", data=tiny_data)
    assert len(sent) == 1 and found.test_accuracy == plain.test_accuracy
    assert "the server is down" in capsys.readouterr().err


def test_a_missing_package_is_refused_before_anything_is_written(tiny_config, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="wandb"):
        retrain(tiny_config("logging.trackers=[wandb]"), CELL, tmp_path / "run", data=tiny_data)
    assert not (tmp_path / "run").exists()
