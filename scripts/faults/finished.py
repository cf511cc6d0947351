"""Finished runs of every kind, made once and restored for each fault; and a command line run in this process."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import numpy as np

from faults.commands import SHORT, SOLVE, children_in_this_process
from faults.toy import make_toy

WIDE = ["retrain", "DARTS_V2"]


class Finished:
    """Runs in a folder, with their images and configuration.

    Attributes:
        path: Holds `toy.npz`, `toy.yaml`, and the folders search, retrain, run, compare, solve and out (an export);
            other/ holds search, retrain, solve and out of another seed.
    """

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def make(cls, path: Path) -> Finished:
        """Makes the runs."""
        children_in_this_process()
        path.mkdir(parents=True)
        make_toy(path)
        made = cls(path)
        for seed, place in ((0, ""), (1, "other/")):
            for name in ("search", "retrain", "solve", *(("run", "compare") if not place else ())):
                made.call(*made.command(name, place, seed))
            made.call("export", f"{path}/{place}retrain", "--format", "safetensors", "--output", f"{path}/{place}out")
        return made

    def command(self, name: str, place: str = "", seed: int = 0) -> list[str]:
        """Returns the command of a run, without --resume."""
        config = ["--config", str(self.path / "toy.yaml"), *SHORT]
        words = {
            "search": ["search", *config],
            "retrain": [*WIDE, *config],
            "run": ["run", *config],
            "compare": ["compare", "--methods", "darts1", "--seeds", str(seed), *config],
            "solve": ["solve", "hyper-cleaning", *SOLVE, "--corrupt", "0.5", "--data", f"npz:{self.path / 'toy.npz'}"],
        }[name]
        seeds = [] if name == "compare" else ["--seed", str(seed)]
        return [*words, *seeds, "--output", str(self.path / place / name)]

    def call(self, *words: str) -> str:
        """Runs a command that must succeed, and returns its output."""
        code, text = command_line(*words)
        if code != 0:
            raise SystemExit(f"{words}: {text}")
        return text

    def fresh(self) -> Finished:
        """Returns the runs as they were made, in the same place: configurations name absolute paths."""
        shutil.rmtree(self.path)
        shutil.copytree(self._pristine, self.path)
        return self

    @property
    def _pristine(self) -> Path:
        return self.path.with_name(f"{self.path.name}-pristine")

    def keep(self) -> None:
        """Makes what is there now what `fresh` returns to."""
        shutil.rmtree(self._pristine, ignore_errors=True)
        shutil.copytree(self.path, self._pristine)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the images and labels."""
        with np.load(self.path / "toy.npz") as file:
            return dict(file)


def command_line(*words: str) -> tuple[int, str]:
    """Runs a command line in this process; returns its exit code and what it printed."""
    from nas_moreau.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(list(words))
        except SystemExit as error:
            code = int(error.code or 0)
    return code, out.getvalue()
