"""The folder of one run: its lock, its configuration, its state and its files.

config.yaml, environment.json, status.json, data.json, log.txt and result.json are written here; checkpoints/ by
`checkpoint`; metrics.csv, alphas.csv and tensorboard/ by `monitor`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from nas_moreau.config import flatten
from nas_moreau.errors import InputError, first_line
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.runs.environment import describe_environment
from nas_moreau.runs.lock import LOCK_NAME, Lock
from nas_moreau.runs.plain_files import json_text, read_json, read_yaml

_log = logging.getLogger(__name__)

WORST_FILE = "worst.png"
"""In the folder of a retraining: the test images with the most confident wrong predictions."""

STATES = ("running", "finished", "interrupted", "failed")
MAY_CHANGE = ("epochs", "logging", "device", "output", "checkpoint", "download", "directory")
"""Keys, in any section, that a resumed run may change (epochs only upwards). None of them moves a result."""


class RunFolder:
    """An output folder that is locked for this process.

    Attributes:
        path: The folder.
        stage: What runs in it, as given to `open`.
        resuming: Whether an earlier run is being continued.
        finished: Whether that earlier run is finished, so that its result can be read and there is nothing to do.
        digest: Of the configuration, except for what a resumed run may change.

    Args:
        lock: Its lock. Without one nothing is ever written: another process writes in the folder.
    """

    def __init__(self, path: Path, stage: str, lock: Lock | None, *, resuming: bool, finished: bool, digest: str):
        self.path, self.stage, self.resuming, self.finished = path, stage, resuming, finished
        self.digest = digest
        self._lock = lock
        self._state = "finished" if finished else "running"

    @classmethod
    def open(cls, path: str | os.PathLike[str], config: dict[str, Any], stage: str, resume: bool = False) -> RunFolder:
        """Creates or reopens the folder, takes its lock and writes config.yaml, environment.json and status.json.

        Args:
            path: The folder; created with its parents if it is missing.
            config: The whole configuration, plain data.
            stage: Name of what runs in it, for example "search".
            resume: Continue an earlier run in this folder; if there is none, start from the beginning.

        Raises:
            InputError: The folder holds something and `resume` is false, holds no run of this stage or one with
                another configuration, is in use by another process, or cannot be written to.
        """
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = Lock.take(folder)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise InputError(
                f"The output folder {folder} cannot be written to ({reason}).", "Choose another one with --output."
            ) from error
        try:
            run = cls._enter(folder, config, stage, resume, lock)
        except BaseException:
            lock.release()
            raise
        _log.debug("run folder: %s", folder, extra={"run_folder": folder})
        return run

    @classmethod
    def _enter(cls, folder: Path, config: dict[str, Any], stage: str, resume: bool, lock: Lock) -> RunFolder:
        present = sorted(p.name for p in folder.iterdir() if p.name != LOCK_NAME and not p.name.endswith(".tmp"))
        if present and not resume:
            what = "a run" if "config.yaml" in present else f"files ({', '.join(present[:3])})"
            raise InputError(
                f"The output folder {folder} already holds {what}.",
                "Choose another one with --output, or continue with --resume.",
            )
        if present and "config.yaml" not in present:
            raise InputError(
                f"The folder {folder} holds no run that could be resumed (config.yaml is missing).",
                "Give the folder of a run, or an empty folder.",
            )
        resuming = bool(present)
        status = read_json(folder / "status.json") if resuming else None
        grown: list[str] = []
        if resuming:
            if status is not None and status.get("stage") != stage:
                raise InputError(
                    f"The folder {folder} holds a run of {status.get('stage')!r}, not of {stage!r}.",
                    "Resume it with the command that began it, or choose another folder.",
                )
            grown = _compare(read_yaml(folder / "config.yaml"), config, folder)
        state = status.get("state") if status is not None else None
        finished = state == "finished" and (folder / "result.json").exists() and not grown
        digest = configuration_digest(config)
        run = cls(folder, stage, lock, resuming=resuming, finished=finished, digest=digest)
        if not finished:
            # first of all: without it a folder with other files could not be resumed
            run.write_text("config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
            earlier = read_json(folder / "environment.json") if resuming else None
            run._write_json("environment.json", describe_environment(earlier))
            run.status("running")
            run.log(f"{stage}: {'resumed' if resuming else 'started'}")
        return run

    @property
    def silent(self) -> bool:
        """Whether another process writes in the folder, and nothing is written here."""
        return self._lock is None

    def log(self, text: str) -> None:
        """Appends a line with the time (UTC) to log.txt."""
        if self.silent:
            return
        with open(self.path / "log.txt", "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{_now()} {text}\n")

    def status(self, state: str, **fields: Any) -> None:
        """Replaces status.json.

        Args:
            state: "running", "finished", "interrupted" or "failed".
            fields: Further entries.
        """
        if state not in STATES:
            raise ValueError(f"Unknown state {state!r}; use one of {', '.join(STATES)}.")
        self._state = state
        self._write_json(
            "status.json", {**fields, "state": state, "stage": self.stage, "pid": os.getpid(), "updated": _now()}
        )

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes result.json: sorted keys, no NaN or infinity (ValueError)."""
        self._write_json("result.json", result)

    def write_data(self, description: dict[str, Any]) -> None:
        """Writes data.json: description and normalisation of the images, which users of the weights need."""
        self._write_json("data.json", description)
        for note in description["notes"]:
            self.log(f"images: {note}")

    def read_result(self) -> dict[str, Any] | None:
        """Returns the contents of result.json, or None if there is none."""
        return read_json(self.path / "result.json")

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file of the folder atomically; `name` must stay inside the folder (ValueError)."""
        self.write_files({name: text.encode("utf-8")})

    def write_files(self, files: dict[str, bytes]) -> None:
        """Writes files of the folder by name, each atomically; names must stay inside the folder (ValueError)."""
        for name, data in files.items():
            target = (self.path / name).resolve()
            if not target.is_relative_to(self.path.resolve()) or target == self.path.resolve():
                raise ValueError(f"{name!r} leads out of the run folder; use a plain file name.")
            if not self.silent:
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(target, data)

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        self.write_text(name, json_text(value))

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._state == "running":
            # whatever ended the run, its folder records it; a full disk may prevent even that
            with suppress(OSError):
                state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                self.status(state, reason=first_line(error, 1000))
        self.close()


def configuration_digest(config: dict[str, Any]) -> str:
    """Returns 16 hexadecimal digits of the entries that a resumed run may not change."""
    entries = {key: value for key, value in flatten(config).items() if not _may_change(key)}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the configuration of a run folder, plain data.

    Raises:
        InputError: It is not a run folder, or its config.yaml is damaged.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder (config.yaml is missing).", "Give the folder of a run.")
    return read_yaml(path)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _compare(old: dict[str, Any], new: dict[str, Any], folder: Path) -> list[str]:
    """Returns the keys of epochs that grew; raises InputError naming the keys that may not differ."""
    before, after = flatten(old), flatten(new)
    refused: list[str] = []
    grown: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        a, b = before.get(key), after.get(key)
        if a == b and type(a) is type(b):
            continue
        parts = key.split(".")
        if parts[-1] == "epochs" and type(a) is int and type(b) is int:
            (grown if b > a else refused).append(key)
        elif parts[-1] == "epochs" or not _may_change(key):
            refused.append(key)
    if refused:
        shown = ", ".join(f"{key} (was {before.get(key)!r}, now {after.get(key)!r})" for key in refused[:5])
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise InputError(
            f"The run in {folder} was made with another configuration: {shown}{more}.",
            "Resume it with its own configuration, or start a new folder with --output.",
        )
    return grown


def _may_change(key: str) -> bool:
    return any(part in MAY_CHANGE for part in key.split("."))
