"""Commands of the program in child processes, so that each run has its own memory and signals."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from nas_moreau import distributed
from nas_moreau.errors import InputError
from nas_moreau.plugins import WITHIN, python_command
from nas_moreau.runs.heartbeat import pause
from nas_moreau.training.signals import SIGNALS, Interrupted, StopRequest

_USAGE = 2
"""Exit code of a command line or configuration that was refused."""


STARTING = 1.5
"""Seconds until a command that was started shows its own progress."""


class Command(NamedTuple):
    """One command of the program.

    Attributes:
        name: For messages.
        arguments: The command line after `nas-moreau`.
        log: File for its messages when several commands run in parallel.
    """

    name: str
    arguments: Sequence[str]
    log: Path


class _Active(NamedTuple):
    chain: Iterator[Command]
    command: Command
    process: subprocess.Popen[bytes]
    began: float


def run_all(chains: Iterable[Iterator[Command]], jobs: int, stop: StopRequest, place: str) -> list[str]:
    """Runs chains of commands and returns the names of those that failed.

    A chain yields one command after another; its own code between them runs in this process. A command that fails ends
    its chain only.

    Args:
        chains: The chains; the next one is started when a job is free.
        jobs: Number of chains that run in parallel; a single one shows its progress, if no other process runs any.
        stop: When it receives a signal, the running commands get it too, and are waited for.
        place: The folder named in the exception.

    Raises:
        Interrupted: A signal arrived; the commands have saved their state.
        InputError: A command refused its input.
    """
    waiting = iter(chains)
    failed: list[str] = []
    # with --quiet standard error is the null device, which a command started here would not write to by itself
    quiet = jobs > 1 or distributed.world_size() > 1 or getattr(sys.stderr, "name", None) == os.devnull
    active: list[_Active] = []
    more = True
    try:
        while True:
            while more and len(active) < jobs and not stop.received:
                chain = next(waiting, None)
                more = chain is not None
                if chain is not None:
                    _advance(chain, active, quiet)
            if stop.received:
                _stop(active)
                raise Interrupted(stop.received, place)
            if not active:
                return failed
            # one that shows its own progress is starting meanwhile
            pause(not quiet and time.monotonic() - active[0].began > STARTING)
            for one in [one for one in active if one.process.poll() is not None]:
                active.remove(one)
                code = one.process.returncode
                if code == 0:
                    _advance(one.chain, active, quiet)
                elif code == _USAGE:
                    raise InputError(
                        f"{one.command.name} was refused{_last_line(one.command, quiet)}.", "Fix this first."
                    )
                elif code - 128 in SIGNALS or -code in SIGNALS:
                    raise Interrupted(signal.SIGTERM, place)  # that command alone was stopped
                else:
                    failed.append(f"{one.command.name} (exit code {code}{_last_line(one.command, quiet)})")
            time.sleep(0.05)
    finally:
        _stop(active)
        pause(False)


def _advance(chain: Iterator[Command], active: list[_Active], quiet: bool) -> None:
    pause(False)
    command = next(chain, None)
    if command is not None:
        active.append(_Active(chain, command, _start(command, quiet), time.monotonic()))


def _start(command: Command, quiet: bool) -> subprocess.Popen[bytes]:
    messages: IO[str] | None = None
    if quiet:
        command.log.parent.mkdir(parents=True, exist_ok=True)
        messages = open(command.log, "a", encoding="utf-8")  # noqa: SIM115 - closed below, the child has its own
    try:
        return subprocess.Popen(
            python_command("nas_moreau", *command.arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            env={**distributed.child_environment(), WITHIN: "1"},
        )
    finally:
        if messages is not None:
            messages.close()


def _die_with_parent() -> None:
    """Asks Linux to send SIGTERM, at which a run saves and ends, when this process is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _stop(active: list[_Active]) -> None:
    for one in active:
        if one.process.poll() is None:
            one.process.terminate()
    for one in active:
        try:
            one.process.wait()
        except KeyboardInterrupt:  # a second Ctrl-C: end at once, with the state saved before
            one.process.kill()
            one.process.wait()
            raise
    active.clear()


def _last_line(command: Command, quiet: bool) -> str:
    """Returns the last line of a command's messages; a command that ran alone has shown them already."""
    if not quiet:
        return ": see above"
    text = command.log.read_text(encoding="utf-8", errors="replace") if command.log.exists() else ""
    lines = text.strip().splitlines()
    return f": {lines[-1].rstrip('.')}" if lines else ""
