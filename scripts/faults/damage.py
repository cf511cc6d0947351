"""Checkpoint files that are changed, cut, or find no room."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from faults.toy import Row


def payload(number: int) -> dict[str, Any]:
    """Returns a checkpoint of the size and kind of the toy search's."""
    draw = torch.Generator().manual_seed(number)
    tensors = [torch.randn((4, 4, 3, 3), generator=draw) for _ in range(40)]
    return {"number": number, "y": tensors, "sums": {"loss": tensors[0].sum()}, "seconds": 1.5}


def two_saves(folder: Path) -> bytes:
    """Saves numbers 1 and 2 and returns the bytes of last.pt."""
    from nas_moreau.runs import save_checkpoint

    for number in (1, 2):
        save_checkpoint(folder, payload(number))
    return (folder / "last.pt").read_bytes()


def _falls_back(folder: Path, changed: bytes) -> bool:
    """Writes `changed` as last.pt; returns whether previous.pt is loaded in its place and the note says why."""
    from nas_moreau.runs import load_checkpoint

    (folder / "last.pt").write_bytes(changed)
    found = load_checkpoint(folder)
    return found is not None and found[0]["number"] == 1 and found[1].startswith("previous.pt is used because last.pt ")


def bits(count: int, folder: Path, seed: int = 2) -> Row:
    """Flips single bits of last.pt."""
    draw, begin, well = random.Random(seed), time.monotonic(), 0
    data = two_saves(folder / "bits")
    for _ in range(count):
        changed, bit = bytearray(data), draw.randrange(8 * len(data))
        changed[bit // 8] ^= 1 << bit % 8
        well += _falls_back(folder / "bits", bytes(changed))
    note = f"of {len(data):,} bytes; none loaded; previous.pt is used and the reason logged"
    return Row("single-bit flips of last.pt", count, well, note, time.monotonic() - begin)


def truncations(count: int, folder: Path, seed: int = 3) -> Row:
    """Cuts last.pt at random lengths, 0 among them."""
    draw, begin = random.Random(seed), time.monotonic()
    data = two_saves(folder / "cuts")
    lengths = [0, len(data) - 1, *(draw.randrange(len(data)) for _ in range(count - 2))]
    well = sum(_falls_back(folder / "cuts", data[:length]) for length in lengths)
    note = "none loaded; previous.pt is used and the reason logged"
    return Row("truncations of last.pt", count, well, note, time.monotonic() - begin)


def full_disk(count: int, folder: Path) -> Row:
    """Lets the disk be full after a number of bytes of a save, at `count` places from none to all but one."""
    from nas_moreau.runs import DiskFull, load_checkpoint, save_checkpoint

    begin, well = time.monotonic(), 0
    place = folder / "full"
    before = two_saves(place)
    room = [round(i * (len(before) - 1) / (count - 1)) for i in range(count)]
    for left in room:
        with _WriteOnly(left):
            try:
                save_checkpoint(place, payload(2))  # the same size as the one that is there
                missing = -1
            except DiskFull as error:
                missing = error.missing_bytes
        found = load_checkpoint(place)
        kept = (place / "last.pt").read_bytes() == before and found is not None and found[0]["number"] == 2
        whole = sorted(os.listdir(place)) == ["last.pt", "previous.pt"]
        well += kept and whole and missing == len(before) - left
    real = _on_a_small_disk(folder / "tmpfs")
    note = f"of {len(before):,} bytes, writes refused by an injected ENOSPC; missing bytes named exactly; {real}"
    return Row("disk full inside a save", count, well, note, time.monotonic() - begin)


class _WriteOnly:
    """While it is open, os.write accepts a number of bytes and then reports a full disk."""

    def __init__(self, left: int):
        self.left, self._write = left, os.write

    def __enter__(self) -> None:
        def write(handle: int, data: Any) -> int:
            if self.left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done = self._write(handle, data[: self.left])
            self.left -= done
            return done

        os.write = write

    def __exit__(self, *error: object) -> None:
        os.write = self._write


def _on_a_small_disk(place: Path) -> str:
    """Saves on a tmpfs of 1 MiB until it is full; returns how that went, or that none could be mounted."""
    from nas_moreau.runs import DiskFull, load_checkpoint, save_checkpoint

    place.mkdir()
    mounted: Callable[..., Any] = lambda *words: subprocess.run(words, capture_output=True, check=False).returncode == 0  # noqa: E731
    if not mounted("mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)):
        return "no small disk could be mounted"
    try:
        well = total = 0
        for filler in range(20, 200, 4):
            for name in ("last.pt", "previous.pt"):
                (place / name).unlink(missing_ok=True)
            save_checkpoint(place, {"number": 1})
            big = {"number": 2, "filler": torch.zeros(filler * 2500)}  # 10 kB steps across the border
            (place / "ballast").write_bytes(bytes(300_000))
            total += 1
            try:
                save_checkpoint(place, big)
                expected = 2
            except DiskFull as error:
                expected = 1 if error.missing_bytes > 0 else -1
            found = load_checkpoint(place)
            well += found is not None and found[0]["number"] == expected and not (place / "last.pt.tmp").exists()
        return f"and on a real disk of 1 MiB {well} of {total} saves well"
    finally:
        mounted("umount", str(place))
