"""Inputs that are swapped or changed between two commands, and links put into run folders: each must be noticed."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from faults.finished import Finished, command_line
from faults.flips import flips
from faults.toy import Row

T = TypeVar("T")
USAGE = 2
Arrays = dict[str, np.ndarray]


def _pixel(a: Arrays) -> Arrays:
    a["x_train"][7, 3, 3, 0] ^= 1
    return a


def _label(a: Arrays) -> Arrays:
    a["y_train"][[0, 1]] = a["y_train"][[1, 0]]
    return a


IMAGES: dict[str, Callable[[Arrays], Arrays]] = {
    "a pixel": _pixel,
    "a label": _label,
    "a test pixel": lambda a: a | {"x_test": a["x_test"] ^ np.uint8(1)},
    "a test label": lambda a: a | {"y_test": np.roll(a["y_test"], 1)},
    "the order of the images": lambda a: a | {"x_train": a["x_train"][::-1], "y_train": a["y_train"][::-1]},
    "an image more": lambda a: (
        a
        | {
            "x_train": np.concatenate([a["x_train"], a["x_train"][:1]]),
            "y_train": np.append(a["y_train"], a["y_train"][0]),
        }
    ),
    "another set of the same shape": lambda a: a | {"x_train": np.roll(a["x_train"], 1, 0)},
}
LONGER = {"search": ["search.epochs=3"], "retrain": ["retrain.epochs=3"], "run": ["retrain.epochs=3"]}


def readers(made: Finished) -> dict[str, list[str]]:
    """Returns the commands that read runs, by name."""
    path = str(made.path)
    resumed = {
        f"resume {name}": [*made.command(name), *LONGER.get(name, []), "--resume"]
        for name in ("search", "retrain", "run", "solve")
    }
    return resumed | {
        "evaluate search": ["evaluate", f"{path}/search"],
        "evaluate retrain": ["evaluate", f"{path}/retrain"],
        "derive": ["derive", f"{path}/search"],
        "derive selection": ["derive", f"{path}/search", "--rule", "selection"],
        "retrain RUN": ["retrain", f"{path}/search", "--dry-run"],
        "export": ["export", f"{path}/retrain", "--format", "safetensors", "--output", f"{path}/new"],
        "predict run": ["predict", f"{path}/retrain", f"{path}/picture.png"],
        "predict export": ["predict", f"{path}/out", f"{path}/picture.png"],
        "report search": ["report", f"{path}/search"],
        "report run": ["report", f"{path}/run"],
    }


def _file(stage: str, name: str) -> Callable[[Finished], None]:
    """Returns a change: a file of a run becomes that of the run of another seed."""
    return lambda made: shutil.copy(made.path / "other" / stage / name, made.path / stage / name) and None


def _checkpoint(stage: str) -> Callable[[Finished], None]:
    def change(made: Finished) -> None:
        (made.path / stage / "checkpoints" / "previous.pt").unlink(missing_ok=True)
        _file(stage, "checkpoints/last.pt")(made)

    return change


def _lost(stage: str, name: str) -> Callable[[Finished], None]:
    return lambda made: (made.path / stage / name).unlink()


def _row_lost(stage: str, name: str) -> Callable[[Finished], None]:
    def change(made: Finished) -> None:
        path = made.path / stage / name
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[:1], *lines[2:]]))

    return change


def _images(change: Callable[[Arrays], Arrays]) -> Callable[[Finished], None]:
    return lambda made: np.savez(made.path / "toy.npz", **change(made.arrays()))


FILES = {
    "genotype.json of another seed": (
        _file("search", "genotype.json"),
        ["retrain RUN", "report search", "derive", "resume search"],
    ),
    "result.json of another seed": (_file("search", "result.json"), ["retrain RUN", "report search", "resume search"]),
    "config.yaml of another seed": (
        _file("search", "config.yaml"),
        ["resume search", "derive", "evaluate search", "report search"],
    ),
    "config.yaml of another seed, retrain": (
        _file("retrain", "config.yaml"),
        ["resume retrain", "evaluate retrain", "export", "predict run"],
    ),
    "data.json lost": (_lost("retrain", "data.json"), ["export", "predict run"]),
    "last.pt of another seed": (
        _checkpoint("search"),
        ["resume search", "derive", "derive selection", "evaluate search"],
    ),
    "last.pt of another seed, retrain": (_checkpoint("retrain"), ["resume retrain"]),
    "best.pt of another seed": (
        _file("retrain", "checkpoints/best.pt"),
        ["evaluate retrain", "export", "predict run"],
    ),
    "weights of another export": (_file("out", "model.safetensors"), ["predict export"]),
    "config.json of another export": (_file("out", "config.json"), ["predict export"]),
    "a row of metrics.csv lost": (_row_lost("search", "metrics.csv"), ["resume search", "report search"]),
    "metrics.csv lost": (_lost("search", "metrics.csv"), ["resume search", "report search"]),
    "a row of alphas.csv lost": (_row_lost("search", "alphas.csv"), ["resume search", "report search"]),
    "alphas.csv lost": (_lost("search", "alphas.csv"), ["resume search", "report search"]),
    "metrics.csv of another seed": (_file("solve", "metrics.csv"), ["resume solve"]),
}
OF_IMAGES = [
    "resume search",
    "resume retrain",
    "resume run",
    "resume solve",
    "evaluate search",
    "evaluate retrain",
    "derive selection",
]


def cases() -> list[tuple[str, str, Callable[[Finished], None]]]:
    """Returns (kind of change, reader, change)."""
    found = [(kind, reader, _images(change)) for kind, change in IMAGES.items() for reader in OF_IMAGES]
    return found + [(kind, name, change) for kind, (change, names) in FILES.items() for name in names]


def swaps(count: int, folder: Path) -> list[Row]:
    """Changes finished runs before each reader, moves their images, puts links into them and flips bits of their texts.

    Args:
        count: Of each, at most.
        folder: Where the runs are made.
    """
    made = Finished.make(folder / "made")
    _picture(made.path)
    made.keep()
    return [_swapped(made, count), _moved(made, count), _links(made, folder, count), flips(made.fresh(), count)]


def _some(things: Sequence[T], count: int) -> Sequence[T]:
    return things[:: max(1, len(things) // count)][:count]


def _swapped(made: Finished, count: int) -> Row:
    begin, wrong = time.monotonic(), Counter[str]()
    todo = _some(cases(), count)
    well = silent = 0
    for kind, reader, change in todo:
        place = made.fresh()
        change(place)
        code, text = command_line(*readers(place)[reader])
        noticed = code == USAGE and text.count("nas-moreau: ") == 1
        well += noticed
        silent += code == 0
        wrong.update([f"{kind}, {reader}: {code} {text[-120:]!r}"] * (not noticed))
    kinds, names = len({kind for kind, _, _ in todo}), len({reader for _, reader, _ in todo})
    note = f"{kinds} kinds of change, {names} readers, {silent} silent {list(wrong)[:3] if wrong else ''}"
    return Row("swapped or changed inputs noticed", len(todo), well, note, _since(begin))


def _picture(path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(path / "picture.png")


def _moved(made: Finished, count: int) -> Row:
    """The images under another name: every reader accepts them."""
    begin, well, wrong = time.monotonic(), 0, []
    todo = _some(OF_IMAGES, count)
    for reader in todo:
        place = made.fresh()
        (place.path / "toy.npz").rename(place.path / "moved.npz")
        words = [w for w in readers(place)[reader] if not w.startswith("npz:")]
        words = [w for w in words if w != "--data"]
        code, text = command_line(*words, "--data", f"npz:{place.path / 'moved.npz'}")
        well += code == 0
        wrong += [f"{reader}: {code} {text[-120:]!r}"] * (code != 0)
    note = str(wrong[:3]) if wrong else "equal content under another name is accepted"
    return Row("moved images accepted", len(todo), well, note, _since(begin))


LINKS = (
    ".lock",
    "log.txt",
    "config.yaml",
    "status.json",
    "status.json.tmp",
    "result.json",
    "result.json.tmp",
    "files.json",
    "files.json.tmp",
    "metrics.csv",
    "alphas.csv",
    "genotype.json.tmp",
    "evaluation.json.tmp",
    "report.html.tmp",
    "checkpoints",
    "checkpoints/last.pt.tmp",
    "checkpoints/best.pt.tmp",
    "tensorboard",
)
WRITERS = ("resume search", "derive --write", "evaluate search", "report search")


def _links(made: Finished, folder: Path, count: int) -> Row:
    """A link out of the folder at each name that a run writes: what it points to stays as it is."""
    begin, well, wrong = time.monotonic(), 0, []
    victim, room = folder / "victim", folder / "victims"
    todo = _some([(name, writer) for name in LINKS for writer in WRITERS], count)
    for name, writer in todo:
        place = made.fresh()
        _link(place.path / "search" / name, victim, room)
        words = readers(place) | {"derive --write": ["derive", f"{place.path}/search", "--write"]}
        code, text = command_line(*words[writer])
        kept = victim.read_bytes() == b"mine" and not any(room.iterdir()) and "Error" not in text
        well += kept
        wrong += [f"{writer}: {name}: {code} {text[-120:]!r}"] * (not kept)
    note = str(wrong[:3]) if wrong else "refused, or the link replaced; the target is never written to"
    return Row("links out of a run folder", len(todo), well, note, _since(begin))


def _link(path: Path, victim: Path, room: Path) -> None:
    victim.write_bytes(b"mine")
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    folder = path.name in ("checkpoints", "tensorboard")
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.symlink(room if folder else victim, path)


def _since(begin: float) -> float:
    return time.monotonic() - begin
