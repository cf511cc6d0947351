"""Runs of other verbs, each in a process of its own, so that its memory and its signals are its own."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from nas_moreau import distributed
from nas_moreau.errors import InputError
from nas_moreau.training.signals import Interrupted, StopRequest

_USAGE = 2  # the command line's exit code for something that cannot be used


class Run(NamedTuple):
    """One command of the program.

    Attributes:
        name: Shown where it fails.
        words: The command line after `nas-moreau`.
        log: Where its messages go when several run at once.
    """

    name: str
    words: Sequence[str]
    log: Path


class _Active(NamedTuple):
    steps: Iterator[Run]
    run: Run
    process: subprocess.Popen[bytes]


def run_all(chains: Iterable[Iterator[Run]], at_once: int, stop: StopRequest, place: str) -> list[str]:
    """Runs chains of commands, `at_once` chains side by side, and returns the names of the runs that failed.

    A chain yields one run after another; what it does between them happens here. A run that fails ends its chain only.

    Args:
        chains: The chains; each is begun when a place is free.
        at_once: How many may run side by side; one alone shows its progress, if no other process runs any.
        stop: When it receives a signal, the runs in work get it too, and are waited for.
        place: Named in the exception.

    Raises:
        Interrupted: A signal arrived; the runs have saved what they had.
        InputError: A run refused what it was given.
    """
    waiting = iter(chains)
    failed: list[str] = []
    quiet = at_once > 1 or distributed.processes() > 1
    active: list[_Active] = []
    more = True
    try:
        while True:
            while more and len(active) < at_once and not stop.received:
                chain = next(waiting, None)
                more = chain is not None
                if chain is not None:
                    _advance(chain, active, quiet)
            if stop.received:
                _stop(active)
                raise Interrupted(stop.received, place)
            if not active:
                return failed
            for one in [one for one in active if one.process.poll() is not None]:
                active.remove(one)
                code = one.process.returncode
                if code == 0:
                    _advance(one.steps, active, quiet)
                elif code == _USAGE:
                    raise InputError(f"{one.run.name} was refused{_last_words(one.run, quiet)}.", "Mend that first.")
                elif code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM):
                    raise Interrupted(signal.SIGTERM, place)  # somebody stopped that run alone
                else:
                    failed.append(f"{one.run.name} (exit code {code}{_last_words(one.run, quiet)})")
            time.sleep(0.05)
    finally:
        _stop(active)


def _advance(chain: Iterator[Run], active: list[_Active], quiet: bool) -> None:
    run = next(chain, None)
    if run is not None:
        active.append(_Active(chain, run, _start(run, quiet)))


def _start(run: Run, quiet: bool) -> subprocess.Popen[bytes]:
    messages: IO[str] | None = None
    if quiet:
        run.log.parent.mkdir(parents=True, exist_ok=True)
        messages = open(run.log, "a", encoding="utf-8")  # noqa: SIM115 - closed below, the process has its own
    try:
        # a session of its own: Ctrl-C reaches this process alone, which hands it on once
        return subprocess.Popen(
            [sys.executable, "-m", "nas_moreau", *run.words],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=messages, start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None, env=distributed.plain_environment(),
        )  # fmt: skip
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
        except KeyboardInterrupt:  # a second Ctrl-C: what was saved stands
            one.process.kill()
            one.process.wait()
            raise
    active.clear()


def _last_words(run: Run, quiet: bool) -> str:
    """Returns the last line of a run's messages; one that ran alone has shown them already."""
    if not quiet:
        return ": see above"
    lines = run.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if run.log.exists() else []
    return f": {lines[-1].rstrip('.')}" if lines else ""
