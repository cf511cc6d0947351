"""A run folder for several processes: the first has it, the others a silent one that says the same."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from nas_moreau import distributed
from nas_moreau.runs import RunFolder


def open_folder(output: str | PathLike[str], config: dict[str, Any], stage: str, resume: bool) -> RunFolder:
    """Opens the folder as `RunFolder.open` does; of several processes the first alone holds it and writes in it.

    Raises:
        InputError: In all processes, what it was in the first.
    """
    opened: list[RunFolder] = []

    def enter() -> tuple[bool, bool, str]:
        opened.append(RunFolder.open(output, config, stage, resume))
        return opened[0].resuming, opened[0].finished, opened[0].digest

    said = distributed.on_first(enter)
    return opened[0] if opened else RunFolder(Path(output), stage, None, *said)


def finished_result(folder: RunFolder) -> dict[str, Any]:
    """Returns the result of a folder that is finished."""
    return distributed.on_first(lambda: folder.read_result() or {})
