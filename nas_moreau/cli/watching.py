"""TensorBoard on run folders, on 127.0.0.1 only."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from nas_moreau.errors import InputError


def serve(runs: Sequence[Path], port: int, say: Callable[[str], None]) -> None:
    """Runs TensorBoard on the runs until it is interrupted, and says its address.

    Args:
        runs: Run folders; several are shown side by side under their paths below the folder that holds them all.
        port: Port on 127.0.0.1; 0 lets TensorBoard pick one.
        say: Prints for a person.

    Raises:
        InputError: TensorBoard did not start, for example because the port is taken.
    """
    if not 0 <= port < 65536:
        raise InputError(f"{port} is no port.", "Give one from 0 to 65535.")
    with tempfile.TemporaryDirectory() as place:
        logs = runs[0] if len(runs) == 1 else gather(runs, Path(place))
        _serve(logs, port, say)


def gather(runs: Sequence[Path], place: Path) -> Path:
    """Returns `place` with a link to every run: TensorBoard's own list of several takes no ',' and no leading '/'."""
    whole = sorted({run.resolve() for run in runs})
    above = os.path.commonpath([run.parent for run in whole])
    for run in whole:
        if not any(other in run.parents for other in whole):  # else it is shown as a part of that one
            link = place / run.relative_to(above)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(run, target_is_directory=True)
    return place


def _serve(logs: Path, port: int, say: Callable[[str], None]) -> None:
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logs}", "--host=127.0.0.1", f"--port={port}"]
    say(f"TensorBoard: http://127.0.0.1:{port or '(see below)'}   (Ctrl-C ends it)")
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return
    if code:
        raise InputError(f"TensorBoard ended with code {code}.", "Try another --port.")
