"""The verb watch: TensorBoard on run folders, on 127.0.0.1 only."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nas_moreau.cli.options import stage_folder
from nas_moreau.cli.output import note
from nas_moreau.cli.verbs import option, verb
from nas_moreau.errors import InputError
from nas_moreau.plugins import python_command


@verb(
    "watch",
    "open TensorBoard on runs, on this machine only",
    examples=["watch checkpoints/first", "watch checkpoints/comparison"],
    options=[
        option("runs", nargs="+", metavar="RUN"),
        option("--port", type=int, default=6006, help="port on 127.0.0.1 (default 6006; 0: any free one)"),
    ],
)
def watch(args: argparse.Namespace) -> None:
    """Serves TensorBoard until it is interrupted."""
    if not 0 <= args.port < 65536:
        raise InputError(f"The port {args.port} is out of range.", "Give one from 0 to 65535.")
    port = free_port(args.port)
    for run in args.runs:
        stage_folder(run, "run", "search", "retrain", "solve", "module", "compare")
    runs = [Path(run) for run in args.runs]
    with tempfile.TemporaryDirectory() as place:
        _serve(runs[0] if len(runs) == 1 else gather(runs, Path(place)), port)


def free_port(port: int) -> int:
    """Returns the port if it is free, any free one for 0.

    Raises:
        InputError: Another program uses it, or it may not be used.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"The port {port} cannot be used ({error.strerror}).", "Give another one; --port 0 takes any free one."
            ) from None
        return int(probe.getsockname()[1])


def gather(runs: Sequence[Path], place: Path) -> Path:
    """Returns `place` with a link to every run: TensorBoard's own list of several refuses ',' and a leading '/'."""
    whole = sorted({run.resolve() for run in runs})
    above = os.path.commonpath([run.parent for run in whole])
    for run in whole:
        if not any(other in run.parents for other in whole):  # otherwise it is shown as a part of that one
            link = place / run.relative_to(above)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(run, target_is_directory=True)
    return place


def _serve(logs: Path, port: int) -> None:
    command = python_command("tensorboard.main", f"--logdir={logs}", "--host=127.0.0.1", f"--port={port}")
    note(f"TensorBoard: http://127.0.0.1:{port}   (Ctrl-C ends it)")
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return
    if code:
        raise InputError(f"TensorBoard ended with code {code}.", "Try another --port.")
