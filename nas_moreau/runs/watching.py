"""TensorBoard on run folders, on 127.0.0.1 only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nas_moreau.errors import InputError


def serve(runs: Sequence[Path], port: int, say: Callable[[str], None]) -> None:
    """Runs TensorBoard on the runs until it is interrupted, and says its address.

    Args:
        runs: Run folders; several are shown side by side under their paths.
        port: Port on 127.0.0.1; 0 lets TensorBoard pick one.
        say: Prints for a person.

    Raises:
        InputError: TensorBoard did not start, for example because the port is taken.
    """
    if not 0 <= port < 65536:
        raise InputError(f"{port} is no port.", "Give one from 0 to 65535.")
    where = f"--logdir={runs[0]}" if len(runs) == 1 else "--logdir_spec=" + ",".join(f"{run}:{run}" for run in runs)
    command = [sys.executable, "-m", "tensorboard.main", where, "--host=127.0.0.1", f"--port={port}"]
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
