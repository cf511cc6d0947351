"""Experiment trackers: settings, epochs and final numbers of a stage go to Weights & Biases or MLflow as well.

`logging.trackers=[wandb]` asks for it. A tracker's environment variables say where its data go and under which name
(WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...). A resumed stage goes on in the tracker's
run that it began. A tracker that fails is left out from there on: it never ends a training.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from nas_moreau.config import flatten
from nas_moreau.errors import InputError
from nas_moreau.runs import RunFolder
from nas_moreau.runs.history import Stage
from nas_moreau.runs.plain_files import read_json

FILE = "trackers.json"
"""Of a run folder: name of a tracker -> its identifier of the run."""

PROJECT = "nas-moreau"
"""Of Weights & Biases, and experiment of MLflow, where the environment names none."""


class Tracker(Protocol):
    """A run of a tracker.

    Attributes:
        key: Its identifier there.
    """

    key: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers at a step."""

    def close(self, final: Mapping[str, float], finished: bool) -> None:
        """Logs the final numbers and ends the run, as finished or as interrupted."""


class _Wandb:
    def __init__(self, folder: Path, settings: Mapping[str, Any], key: str | None):
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            name=folder.name,
            group=folder.parent.name,
            config=dict(settings),
            id=key,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.key = self.run.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self, final: Mapping[str, float], finished: bool) -> None:
        self.run.summary.update(dict(final))
        self.run.finish(exit_code=0 if finished else 1)


class _Mlflow:
    def __init__(self, folder: Path, settings: Mapping[str, Any], key: str | None):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        if key is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(name)
            number = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
            title = f"{folder.parent.name}/{folder.name}"
            key = self.client.create_run(number, run_name=title).info.run_id
            values = [Param(self._word(name), str(value)[:500]) for name, value in settings.items()]
            for start in range(0, len(values), 100):  # the most that a request may have
                self.client.log_batch(key, params=values[start : start + 100])
        else:
            self.client.update_run(key, status="RUNNING")
        self.key = key

    @staticmethod
    def _word(name: str) -> str:
        return re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [Metric(self._word(name), value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.key, metrics=metrics[start : start + 1000])

    def close(self, final: Mapping[str, float], finished: bool) -> None:
        self.log({f"final/{name}": value for name, value in final.items()}, 0)
        self.client.set_terminated(self.key, "FINISHED" if finished else "KILLED")


_KINDS: dict[str, Callable[[Path, Mapping[str, Any], str | None], Tracker]] = {"wandb": _Wandb, "mlflow": _Mlflow}
"""Package, which is also the name in a configuration -> a run of it."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers whose package is not installed.

    Raises:
        InputError: It names the package.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"logging.trackers=[{name}] needs the package {error.name}.", f"Run pip install 'nas_moreau[{name}]'."
            ) from None


class Trackers:
    """The trackers of a stage; a fault of one is a line on the terminal and in log.txt, and its end.

    Args:
        names: As `logging.trackers` has them.
        folder: The run folder; one that does not write has no trackers.
        say: Called with the sentence of a fault.

    Attributes:
        final: The result of the stage, once there is one.
    """

    final: Mapping[str, Any] | None = None

    def __init__(self, names: Sequence[str], folder: RunFolder, say: Callable[[str], None]):
        self._folder, self._say, self._open = folder, say, dict[str, Tracker]()
        if folder.silent or not names:
            return
        known = read_json(folder.path / FILE) or {}
        settings = flatten(Stage(folder.path).config)
        for name in names:
            self._do(name, partial(self._begin, name, folder.path, settings, known.get(name)))
        keys = known | {name: tracker.key for name, tracker in self._open.items()}
        folder.write_text(FILE, json.dumps(keys, indent=2) + "\n")

    def _begin(self, name: str, path: Path, settings: Mapping[str, Any], key: str | None) -> None:
        self._open[name] = _KINDS[name](path, settings, key)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Logs numbers at a step."""
        numbers = _numbers(values)
        for name, tracker in list(self._open.items()):
            self._do(name, partial(tracker.log, numbers, step))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *error: object) -> None:
        """Logs the final numbers and ends the runs: as finished if there are any, else as interrupted."""
        numbers = _numbers(self.final or {})
        for name, tracker in list(self._open.items()):
            self._do(name, partial(tracker.close, numbers, self.final is not None))

    def _do(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever goes wrong at a tracker, the training goes on
            self._open.pop(name, None)
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            text = f"{name} gets nothing more of this run: {first}"
            self._folder.log(text)
            self._say(text)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
