"""Files of every kind that a user can hand in, changed at random and forged: only InputError may come of it."""

from __future__ import annotations

import os
import random
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.kinds import gone, kinds
from faults.toy import Row, fork, wait

SLOW = 30.0  # seconds of the processor for one file: a bomb takes longer, a sound file on a busy machine does not
TOKENS = [
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/object/apply:os.system ['touch owned']",
    b"!!binary ",
    b"!!int ",
    b"? ",
    b"- ",
    b"[",
    b"]",
    b"{",
    b"}",
    b": ",
    b"|",
    b">",
    b"%YAML 9.9\n",
    b"---\n",
    b"\t",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"1e999",
    b".nan",
    b"-.inf",
    b"0x" + b"f" * 300,
    b"9" * 5000,
    b"1:" * 300,
    b"2020-13-45",
    b"null",
    b"~",
    b"true",
    b'"',
    b"'",
    b"\\u0000",
    b"../../../etc/passwd",
    b"/dev/zero",
    b"-1",
    b"0",
    b"18446744073709551616",
    b"1e-400",
    b"__import__('os')",
    b"Genotype(",
    b"range(",
    b"|none~0|",
    b"NaN",
    b"Infinity",
    b"[" * 500,
    b"{" * 500,
    b"\xed\xa0\x80",
    b"\xf0\x9f\x92\xa9",
]
EXTREMES = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1, 10 << 30]


def mutate(data: bytes, draw: random.Random, text: bool) -> bytes:
    """Returns `data` after one to four random changes."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(changed) + 1)
        length = min(draw.choice((1, 2, 4, 16, 200)), len(changed) - place)
        what = draw.randrange(8 if text else 7)
        if what == 0 and place < len(changed):
            changed[place] ^= 1 << draw.randrange(8)
        elif what == 1:
            changed[place : place + length] = draw.randbytes(length)
        elif what == 2:
            del changed[place : place + length]
        elif what == 3:
            changed[place:place] = changed[place : place + length] * draw.choice((1, 2, 50))
        elif what == 4:
            del changed[place:]
        elif what == 5:
            form = draw.choice("<>") + draw.choice("BHIQ")
            number = draw.choice(EXTREMES) & ((1 << 8 * struct.calcsize(form)) - 1)
            changed[place : place + struct.calcsize(form)] = struct.pack(form, number)
        else:
            changed[place : place + draw.choice((0, length))] = draw.choice(TOKENS)
    return bytes(changed)


class Outcome:
    """Counts what came of the files of one kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []
        self.slowest = 0.0
        self.reading = [False]

    def add(self, what: str, read: Callable[[], Any]) -> None:
        """Reads one file and notes how that ended."""
        from nas_moreau.errors import InputError

        begin = time.process_time()
        self.reading[0] = True
        try:
            read()
            self.counts["read"] += 1
        except InputError as error:
            self.counts["refused"] += 1
            if "\n" in str(error) or not error.cause.strip().endswith("."):
                self.bad.append(f"{what}: not one sentence: {str(error)[:200]!r}")
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.bad.append(f"{what}: {type(error).__name__}: {str(error)[:100]!r} at {place.name}:{place.lineno}")
        self.reading[0] = False
        spent = time.process_time() - begin
        self.slowest = max(self.slowest, spent)
        if spent > SLOW:
            self.bad.append(f"{what}: {spent:.1f} s of the processor")


def try_kind(outcome: Outcome, name: str, count: int, folder: Path, seed: int = 4) -> None:
    """Reads `count` changed files and all forged ones of a kind, and notes in `outcome` how each ended."""
    kind, draw = kinds()[name], random.Random(f"{seed} {name}")
    place = folder / "files"
    place.mkdir(parents=True)
    paths = kind.make(place)
    sound = {path: path.read_bytes() for path in paths}
    kind.read(place)

    def restore() -> None:
        for path, data in sound.items():
            gone(path).write_bytes(data)

    before = sorted(place.rglob("*"))
    for number, forge in enumerate(kind.forged(place)):
        restore()
        forge()
        outcome.add(f"forged {number}", lambda: kind.read(place))
    text = name in ("configuration", "search space", "genotype", "benchmark table")
    restore()
    for number in range(count):
        path = draw.choice(paths)
        data = mutate(sound[path], draw, text)
        path.write_bytes(data)
        (folder / "case").write_bytes(data)  # for a case that takes the process with it
        outcome.add(f"change {number}", lambda: kind.read(place))
        path.write_bytes(sound[path])
    if sorted(place.rglob("*")) != before:
        outcome.bad.append("files appeared or went")


def watch_files(folder: Path, bad: list[str], reading: list[bool]) -> None:
    """Notes in `bad` whatever this process, while `reading`, writes, makes, runs or connects to outside of `folder`."""

    def hook(event: str, arguments: tuple) -> None:
        if not reading[0]:
            return
        if event in ("os.system", "subprocess.Popen", "socket.connect", "os.exec", "os.posix_spawn"):
            bad.append(f"{event} {arguments!r:.100}")
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes or event in (
            "os.mkdir",
            "os.remove",
            "os.rename",
            "os.rmdir",
            "os.symlink",
            "os.link",
            "os.truncate",
        ):
            path = arguments[0]
            inside = isinstance(path, int) or str(path).startswith((str(folder), "/dev/null"))
            if not inside:
                bad.append(f"{event} {path!r:.100}")

    sys.addaudithook(hook)


def every_kind(count: int, folder: Path) -> list[Row]:
    """Tries all kinds, each in a separate process: a crash, a hang or a bomb is that process' end alone."""
    return [_in_process(name, count, folder / name.replace(" ", "-")) for name in kinds()]


def _in_process(name: str, count: int, folder: Path) -> Row:
    import resource

    folder.mkdir()
    begin = time.monotonic()

    def work() -> int:
        os.chdir(folder)
        outcome, bad = Outcome(), []
        watch_files(folder, bad, outcome.reading)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try_kind(outcome, name, count, folder)
        added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        bad += outcome.bad
        text = f"{outcome.counts['refused']:,} refused, {outcome.counts['read']:,} still sound; "
        text += f"slowest {outcome.slowest:.2f} s, memory +{added:.0f} MiB"
        (folder / "result").write_text(
            f"{sum(outcome.counts.values()) + len(outcome.bad)}\n{len(bad)}\n{text}\n" + "\n".join(bad)
        )
        return 0

    code = wait(fork(work, folder / "log"), 7200)
    seconds = time.monotonic() - begin
    if code != 0 or not (folder / "result").exists():
        log = (folder / "log").read_text()[-300:]
        return Row(f"changed files: {name}", count, 0, f"the process ended with {code}: {log}", seconds)
    total, bad, text, *lines = (folder / "result").read_text().split("\n")
    note = text + (f"; WRONG: {' / '.join(lines[:5])}" if int(bad) else "")
    return Row(f"changed files: {name}", int(total), int(total) - int(bad), note.replace("|", "/"), seconds)
