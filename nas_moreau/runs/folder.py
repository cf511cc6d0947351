"""The folder of one run: its lock, its configuration, its state and its files.

config.yaml, environment.json, identity.json, status.json, data.json, log.txt and result.json are written here;
checkpoints/ by `checkpoint`; metrics.csv, alphas.csv and tensorboard/ by `monitor`; files.json by `manifest`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import yaml

from nas_moreau.errors import InputError, first_line
from nas_moreau.runs.atomic import append_durable, refuse_links
from nas_moreau.runs.configuration import compare_configurations, configuration_digest
from nas_moreau.runs.environment import changes_of_bytes, describe_environment
from nas_moreau.runs.identity import IDENTITY, Identity, recorded_identity, refuse_other
from nas_moreau.runs.lock import LOCK_NAME, Lock
from nas_moreau.runs.manifest import check_recorded, finish_writes, remove_recorded, write_recorded
from nas_moreau.runs.plain_files import json_text, read_json, read_yaml

_log = logging.getLogger(__name__)

WORST_FILE = "worst.png"
"""In the folder of a retraining: the test images with the most confident wrong predictions."""

MOVABLE = ("data.name",)
"""Keys that a resumed run may change as long as the content is the same."""
DEFAULT_PARENT = Path("checkpoints")
"""Where runs are that were given no folder."""
STATES = ("running", "finished", "interrupted", "failed")


def new_run_folder(stem: str, make: bool = True) -> Path:
    """Returns a new folder under checkpoints/ whose name begins with `stem`.

    Args:
        stem: The name, with a number where it is taken.
        make: Whether to make it, so that no other process gets the same one.

    Raises:
        InputError: It cannot be made.
    """
    for number in count(1):
        path = DEFAULT_PARENT / (stem if number == 1 else f"{stem}-{number}")
        try:
            if make:
                path.mkdir(parents=True)
                return path
            if not path.exists():
                return path
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"{path} cannot be made ({error.strerror}).", "Name a folder with --output.") from None
    raise AssertionError("unreachable")


def check_output(path: str | os.PathLike[str], stage: str, resume: bool = False) -> None:
    """Refuses a folder that `RunFolder.open` would refuse for what is in it or around it; writes nothing.

    Args:
        path: The folder.
        stage: Name of what is to run in it.
        resume: As for `RunFolder.open`.

    Raises:
        InputError: It would be refused.
    """
    folder = Path(path)
    near = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    number = errno.ENOTDIR if not near.is_dir() else errno.EACCES if not os.access(near, os.W_OK | os.X_OK) else 0
    if number:
        raise _unwritable(folder, os.strerror(number))
    if folder.is_dir() and not (resume and not (folder / "config.yaml").exists()):  # one that is not yet whole
        _status_in(folder, stage, resume)


def _unwritable(folder: Path, reason: str) -> InputError:
    return InputError(
        f"The output folder {folder} cannot be written to ({reason}).", "Choose another one with --output."
    )


def _status_in(folder: Path, stage: str, resume: bool) -> dict[str, Any] | None:
    """Returns the status of the run of this stage that is to be resumed, None of an empty folder; refuses all else."""
    present = sorted(p.name for p in folder.iterdir() if p.name != LOCK_NAME and not p.name.endswith(".tmp"))
    if present and not resume:
        what = "a run" if "config.yaml" in present else f"files ({', '.join(present[:3])})"
        raise InputError(
            f"The output folder {folder} already holds {what}.",
            "Choose another one with --output, or continue with --resume.",
        )
    if not present:
        return None
    if "config.yaml" not in present:
        raise InputError(
            f"The folder {folder} holds no run that could be resumed (config.yaml is missing).",
            "Give the folder of a run, or an empty folder.",
        )
    status = read_json(folder / "status.json") or {}
    if status.get("stage", stage) != stage:
        raise InputError(
            f"The folder {folder} holds a run of {status.get('stage')!r}, not of {stage!r}.",
            "Resume it with the command that began it, or choose another folder.",
        )
    return dict(status)


class RunFolder:
    """An output folder that is locked for this process.

    Attributes:
        path: The folder.
        stage: What runs in it, as given to `open`.
        resuming: Whether an earlier run is being continued.
        finished: Whether that earlier run is finished, so that its result can be read and there is nothing to do.
        identity: Digests of the configuration and of what else the run is made of; every checkpoint holds them.
        changes: What has changed since the run was begun so that bytes will differ, a part of a sentence.

    Args:
        lock: Its lock. Without one nothing is ever written: another process writes in the folder.
    """

    def __init__(self, path: Path, stage: str, lock: Lock | None, *, resuming: bool, finished: bool):
        self.path, self.stage, self.resuming, self.finished = path, stage, resuming, finished
        self.identity: Identity = {}
        self.changes = ""
        self._lock = lock
        self._state = "finished" if finished else "running"

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: dict[str, Any],
        stage: str,
        resume: bool = False,
        identity: Identity = MappingProxyType({}),
    ) -> RunFolder:
        """Creates or reopens the folder, takes its lock and writes what is known of the run.

        These are config.yaml, environment.json, identity.json and status.json, written as one.

        Args:
            path: The folder; created with its parents if it is missing.
            config: The whole configuration, plain data.
            stage: Name of what runs in it, for example "search".
            resume: Continue an earlier run in this folder; if there is none, start from the beginning.
            identity: Digests of what else the run is made of, by content (`runs.identity.PARTS`).

        Raises:
            InputError: The folder holds something and `resume` is false, holds no run of this stage or one with
                another configuration or identity, is in use by another process, or cannot be written to. Nothing
                was written.
        """
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            refuse_links(folder)
            lock = Lock.take(folder)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise _unwritable(folder, reason) from error
        try:
            run = cls._enter(folder, stage, resume, lock)
            run._begin(config, identity)
            _log.debug("run folder: %s", folder, extra={"run_folder": folder})
        except BaseException as error:
            with suppress(OSError, InputError):
                if isinstance(error, KeyboardInterrupt) and _begun_here(folder):
                    run.status("interrupted", reason=first_line(error))
            lock.release()
            raise
        return run

    @classmethod
    def _enter(cls, folder: Path, stage: str, resume: bool, lock: Lock) -> RunFolder:
        """Returns the folder if it is empty, or holds a run of this stage that is to be resumed."""
        finish_writes(folder, lock)
        status = _status_in(folder, stage, resume)
        finished = status is not None and status.get("state") == "finished"
        finished = finished and read_json(folder / "result.json") is not None
        return cls(folder, stage, lock, resuming=status is not None, finished=finished)

    def _begin(self, config: dict[str, Any], identity: Identity) -> None:
        """Compares the run with what it was begun with, and records what it is continued with."""
        known = recorded_identity(self.path) if self.resuming else {}
        if self.resuming:
            check_recorded(self.path)
            refuse_other(known, identity, "this command", f"the run in {self.path}")
            movable = MOVABLE if "images" in known and "images" in identity else ()
            stored = read_yaml(self.path / "config.yaml") or {}
            if compare_configurations(stored, config, self.path, movable):  # more epochs are to follow
                self.finished = False
        self.identity = {**known, **identity, "configuration": configuration_digest(config)}
        if self.finished:
            return
        earlier = read_json(self.path / "environment.json") if self.resuming else None
        environment = describe_environment(earlier)
        self.changes = changes_of_bytes(environment)
        begun = {part: digest for part, digest in self.identity.items() if part not in ("configuration", "weights")}
        self.identity = {**begun, "configuration": self.identity["configuration"]}
        texts = {
            "config.yaml": yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
            "environment.json": json_text(environment),
            IDENTITY: json_text(begun),
            "status.json": json_text(self._status("running")),
        }
        self.write_files({name: text.encode("utf-8") for name, text in texts.items()})
        self.log(f"{self.stage}: {'resumed' if self.resuming else 'started'}")

    @property
    def silent(self) -> bool:
        """Whether another process writes in the folder, and nothing is written here."""
        return self._lock is None

    @property
    def within_run(self) -> bool:
        """Whether this is a stage of a run, whose folder is the parent of this one."""
        return (read_json(self.path.parent / "status.json") or {}).get("stage") == "run"

    def log(self, text: str) -> None:
        """Appends a line with the time (UTC) to log.txt."""
        if self.silent:
            return
        append_durable(self.path / "log.txt", f"{_now()} {text}\n".encode("utf-8", "backslashreplace"))

    def status(self, state: str, **fields: Any) -> None:
        """Replaces status.json.

        Args:
            state: "running", "finished", "interrupted" or "failed".
            fields: Further entries.
        """
        self.write_text("status.json", json_text(self._status(state, **fields)))

    def _status(self, state: str, **fields: Any) -> dict[str, Any]:
        if state not in STATES:
            raise ValueError(f"Unknown state {state!r}; use one of {', '.join(STATES)}.")
        self._state = state
        return {**fields, "state": state, "stage": self.stage, "pid": os.getpid(), "updated": _now()}

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes result.json before the run is finished: sorted keys, no NaN or infinity (ValueError)."""
        self.write_text("result.json", json_text(result))

    def finish(self, result: dict[str, Any], weights: str | None = None, **fields: Any) -> None:
        """Writes result.json and the state "finished" as one: a folder has both or neither.

        Args:
            result: Plain data; keys are sorted, NaN and infinity refused (ValueError).
            weights: Digest of the weights that the result belongs to, for identity.json.
            fields: Further entries of status.json.
        """
        texts, before = {"result.json": json_text(result)}, self._state
        if weights is not None:
            self.identity = {**self.identity, "weights": weights}
            own = {part: digest for part, digest in self.identity.items() if part != "configuration"}
            texts[IDENTITY] = json_text(own)
        try:
            texts["status.json"] = json_text(self._status("finished", **fields))
            self.write_files({name: text.encode("utf-8") for name, text in texts.items()})
        except BaseException:
            self._state = before
            raise

    def write_data(self, description: dict[str, Any]) -> None:
        """Writes data.json: description and normalisation of the images, which users of the weights need."""
        self.write_text("data.json", json_text(description))
        for note in description["notes"]:
            self.log(f"images: {note}")

    def read_result(self) -> dict[str, Any] | None:
        """Returns the contents of result.json, or None if there is none."""
        return read_json(self.path / "result.json")

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file of the folder; `name` must stay inside the folder (ValueError)."""
        self.write_files({name: text.encode("utf-8")})

    def write_files(self, files: Mapping[str, bytes]) -> None:
        """Writes files of the folder by name, all of them or none; names must stay inside the folder (ValueError)."""
        if not self.silent:
            write_recorded(self.path, files, self._lock)

    def remove_file(self, name: str) -> None:
        """Removes a file of the folder, if it is there."""
        if not self.silent:
            remove_recorded(self.path, name)

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


def _begun_here(folder: Path) -> bool:
    """Returns whether this process has written that the run is running."""
    status = read_json(folder / "status.json") or {}
    return status.get("state") == "running" and status.get("pid") == os.getpid()


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
