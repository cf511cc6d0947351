"""Every kind of file that a user can hand in, changed at random and forged: only InputError may come of it."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import struct
import sys
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from faults.toy import Row, fork, wait

SLOW = 1.0  # seconds of the processor for one file
TOKENS = [
    b"&a ", b"*a", b"<<: ", b"!!python/object/apply:os.system ['touch owned']", b"!!binary ", b"!!int ", b"? ", b"- ",
    b"[", b"]",
    b"{", b"}", b": ", b"|", b">", b"%YAML 9.9\n", b"---\n", b"\t", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"1e999",
    b".nan",
    b"-.inf", b"0x" + b"f" * 300, b"9" * 5000, b"1:" * 300, b"2020-13-45", b"null", b"~", b"true",
    b'"', b"'", b"\\u0000",
    b"../../../etc/passwd", b"/dev/zero", b"-1", b"0", b"18446744073709551616", b"1e-400", b"__import__('os')",
    b"Genotype(", b"range(", b"|none~0|", b"NaN", b"Infinity", b"[" * 500, b"{" * 500, b"\xed\xa0\x80",
    b"\xf0\x9f\x92\xa9",
]  # fmt: skip
EXTREMES = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1, 10 << 30]


class Kind(NamedTuple):
    """A kind of file: makes sound files in a folder and names them, forges bad ones, reads the folder."""

    make: Callable[[Path], list[Path]]
    forged: Callable[[Path], list[Callable[[], None]]]
    read: Callable[[Path], Any]


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


# --- kinds -----------------------------------------------------------------------------------------------------------


def _one(name: str, content: Callable[[], bytes]) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        (folder / name).write_bytes(content())
        return [folder / name]

    return make


def _texts(name: str, *texts: bytes) -> Callable[[Path], list[Callable[[], None]]]:
    def forged(folder: Path) -> list[Callable[[], None]]:
        writes: list[Callable[[], None]] = [lambda t=t: (folder / name).write_bytes(t) for t in texts]
        return [*writes, lambda: _special(folder / name, "/dev/zero"), lambda: os.mkfifo(_gone(folder / name))]

    return forged


def _gone(path: Path) -> Path:
    path.unlink(missing_ok=True)
    return path


def _special(path: Path, target: str) -> None:
    _gone(path).symlink_to(target)


BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(12)
)
YAML_FORGERIES = (
    BOMB, b"[" * 60_000, b"{" * 60_000, b"- " * 30_000, b"? " * 30_000, b"a: " * 20_000, b"#" * 70_000,
    b"x" * 10_000_000,
    b"seed: " + b"1:" * 30_000 + b"1", b"seed: 0x" + b"f" * 60_000, b"seed: " + b"9" * 60_000, b"a: !!binary x",
    b"".join(b"k%d: 1\n" % i for i in range(6000)), b"seed: 0001-01-01 00:00:00 +23:59", b"? [1]\n: 2",
    b"? {a: 1}\n: 2",
    b"name: ../../../tmp/owned\n", b"seed: !!python/object/apply:os.system ['touch owned']", b"!!set {a, b}", b"=: =",
)  # fmt: skip


def _preset() -> bytes:
    from nas_moreau.presets.by_name import preset_text

    return preset_text("smoke").encode()


def _space() -> bytes:
    return (Path(__file__).resolve().parents[2] / "search_spaces" / "toy.yaml").read_bytes()


def _genotype() -> bytes:
    from nas_moreau.architecture.zoo import published_cell

    return published_cell("DARTS_V2").to_json().encode()


def _images(folder: Path) -> list[Path]:
    from PIL import Image

    draw, paths = np.random.default_rng(0), []
    for part in ("train", "test"):
        for label in ("a", "b"):
            (folder / part / label).mkdir(parents=True)
            for number, ending in enumerate(("png", "jpg", "gif", "bmp", "webp", "tiff")):
                paths.append(folder / part / label / f"{number}.{ending}")
                Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def _forged_images(folder: Path) -> list[Callable[[], None]]:
    place = folder / "train" / "a" / "0.png"

    def huge() -> None:
        header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + header
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        place.write_bytes(data + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")))

    def long() -> None:
        from PIL import Image

        Image.new("1", (170_000_000, 1)).save(place)

    return [
        huge, long, lambda: _special(place, "/dev/zero"), lambda: os.mkfifo(_gone(place)),
        lambda: _special(place, "/etc/passwd"), lambda: _special(place, str(place)),
    ]  # fmt: skip


def _npz() -> bytes:
    draw, file = np.random.default_rng(0), io.BytesIO()
    images, labels = draw.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8), np.arange(12) % 3
    np.savez(file, x_train=images, y_train=labels, x_test=images[:6], y_test=labels[:6])
    return file.getvalue()


def _npy(shape: str, kind: str = "|u1", body: bytes = b"") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def _forged_npz(folder: Path) -> list[Callable[[], None]]:
    path = folder / "data.npz"

    def archive(member: bytes, method: int = zipfile.ZIP_STORED, name: str = "x_train.npy") -> Callable[[], None]:
        def write() -> None:
            path.write_bytes(_npz())
            with zipfile.ZipFile(path) as old:
                kept = {n: old.read(n) for n in old.namelist()}
            with zipfile.ZipFile(path, "w", method) as new:
                for n, content in (kept | {name: member}).items():
                    new.writestr(n, content)

        return write

    def claimed() -> None:  # a directory that claims 8 GB packed and unpacked
        data = bytearray(_npz())
        place = data.rindex(b"PK\x01\x02", 0, data.rindex(b"PK\x01\x02"))
        data[place + 20 : place + 28] = struct.pack("<II", 0xF0000000, 0xF0000000)
        path.write_bytes(bytes(data))

    return [
        archive(_npy("(10737418240, 1, 1, 1)")), archive(_npy("(99999999999999999999, 9, 9, 3)")),
        archive(_npy("(-1, 4, 4, 3)")),
        archive(_npy("(12, 4, 4, 3)", "|O", pickle.dumps([1]))),
        archive(_npy("__import__('os').system('touch owned')")),
        archive(_npy("(100000000, 1, 1, 1)", body=bytes(100_000_000)), zipfile.ZIP_DEFLATED),
        archive(b"\x93NUMPY\x02\x00" + b"\xff" * 4), archive(_npy("(" * 2000)), archive(_npy("(" + "1," * 40 + ")")),
        archive(b"x", name="../../../tmp/owned"), claimed, lambda: _special(path, "/dev/zero"),
        lambda: os.mkfifo(_gone(path)),
    ]  # fmt: skip


_IDX = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _idx(folder: Path) -> list[Path]:
    draw = np.random.default_rng(0)
    for image, label in (_IDX[:2], _IDX[2:]):
        pixels = draw.integers(0, 256, (12, 4, 4), dtype=np.uint8).tobytes()
        labels = (np.arange(12, dtype=np.uint8) % 3).tobytes()
        (folder / image).write_bytes(gzip.compress(struct.pack(">4I", 0x0803, 12, 4, 4) + pixels, 1))
        (folder / label).write_bytes(gzip.compress(struct.pack(">2I", 0x0801, 12) + labels, 1))
    return [folder / name for name in _IDX]


def _forged_idx(folder: Path) -> list[Callable[[], None]]:
    path = folder / _IDX[0]

    def header(count: int, side: int, body: bytes = b"") -> Callable[[], None]:
        return lambda: path.write_bytes(gzip.compress(struct.pack(">4I", 0x0803, count, side, side) + body, 1))

    return [
        header(10_000_000, 32), header(2**32 - 1, 2**16), header(100_000, 60, bytes(100_000_000)),
        header(12, 4, bytes(50_000_000)),
        header(0, 4), header(12, 0), lambda: _special(path, "/dev/zero"), lambda: os.mkfifo(_gone(path)),
    ]  # fmt: skip


def _checkpoint(folder: Path) -> list[Path]:
    import torch

    from nas_moreau.runs import save_checkpoint

    save_checkpoint(
        folder, {"step": 3, "x": [torch.ones(3, 2)], "sums": {"a": torch.zeros(())}, "best": 0.5, "n": None}
    )
    return [folder / "last.pt"]


def seal(payload: bytes) -> bytes:
    """Returns a checkpoint file whose checksum is right, whatever its payload is."""
    checksum = zlib.crc32(payload, zlib.crc32(struct.pack("<IQ", 1, len(payload))))
    return struct.pack("<8sIQI", b"NASMORCK", 1, len(payload), checksum) + payload


class _Evil:
    def __reduce__(self) -> Any:
        return (os.system, ("touch owned",))


def _forged_checkpoints(folder: Path) -> list[Callable[[], None]]:
    import torch

    def saved(value: Any) -> bytes:
        file = io.BytesIO()
        torch.save(value, file)
        return file.getvalue()

    def packed() -> bytes:
        source, target = zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(25_000_000)}))), io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in source.namelist():
                archive.writestr(name, source.read(name))
        return target.getvalue()

    payloads = [
        saved({"a": _Evil()}), pickle.dumps(_Evil()), saved([1]),
        saved({"a": torch.zeros(1).expand(100_000, 100_000)}), packed(),
        saved({"a": torch.eye(3).to_sparse()}), b"", b"PK\x05\x06" + bytes(18), pickle.dumps({"a": 1}), saved(None),
        saved({"a": torch.empty(10**12, device="meta")}),
    ]  # fmt: skip
    writes: list[Callable[[], None]] = [lambda p=p: (folder / "last.pt").write_bytes(seal(p)) for p in payloads]
    return [*writes, lambda: (folder / "last.pt").write_bytes(struct.pack("<8sIQI", b"NASMORCK", 1, 10 << 30, 0))]


def _read_checkpoint(folder: Path) -> None:
    from nas_moreau.runs import load_checkpoint

    path = folder / "last.pt"
    load_checkpoint(folder)
    if path.is_file() and len(data := path.read_bytes()) > 24:  # and once more with a checksum that is right
        path.write_bytes(seal(data[24:]))
        load_checkpoint(folder)


def _table() -> bytes:
    from nas_moreau.architecture import load_space

    rows, draw = ["arch,c10_test_200ep"], random.Random(0)
    for _ in range(5):
        cell = load_space("nas_bench_201").random_genotype(draw).to_nas_bench_201()
        rows.append(f"{cell},{draw.uniform(10, 94):.2f}")
    return "\n".join(rows).encode() + b"\n"


def _kinds() -> dict[str, Kind]:
    from nas_moreau.architecture import load_genotype, load_space
    from nas_moreau.config import load_config
    from nas_moreau.data import load_data
    from nas_moreau.stages.nas_bench_table import load_table

    deep = b'{"version":1,"space":"darts","cells":' + b"[" * 30_000
    genotypes = (
        deep, b"|" * 60_000,
        b"Genotype(" * 5000, b"Genotype(normal=" + b"(" * 30_000, b'{"version": 1e999}', b"x" * 10_000_000,
        b'{"cells": {}, "version": 1, "space": "../../../tmp/owned"}', b"Genotype(normal=[('x', 9**9**9)])",
        b"{" * 60_000,
        b"Genotype(normal=range(0, 999999999999))", b'{"cells": ' + b"9" * 60_000 + b"}",
    )  # fmt: skip
    tables = (
        b"arch,a\n" + b"|none~0|," * 10_000,
        b'"' * 100_000,
        b"arch,a\n" + b"x" * 1_000_000,
        b"arch,a\n\x00,1\n",
        b",,,\n" * 9,
    )
    yamls = YAML_FORGERIES
    return {
        "configuration": Kind(_one("c", _preset), _texts("c", *yamls), lambda f: load_config(path=f / "c")),
        "search space": Kind(_one("s.yaml", _space), _texts("s.yaml", *yamls), lambda f: load_space(f / "s.yaml")),
        "genotype": Kind(_one("g", _genotype), _texts("g", *genotypes), lambda f: load_genotype(f / "g")),
        "npz": Kind(_one("data.npz", _npz), _forged_npz, lambda f: load_data(f"npz:{f / 'data.npz'}")),
        "idx": Kind(_idx, _forged_idx, lambda f: load_data(f"idx:{f}")),
        "image folder": Kind(_images, _forged_images, lambda f: load_data(f"folder:{f}")),
        "checkpoint": Kind(_checkpoint, _forged_checkpoints, _read_checkpoint),
        "benchmark table": Kind(_one("t.csv", _table), _texts("t.csv", *tables), lambda f: load_table(f / "t.csv")),
    }  # fmt: skip


# --- the experiment --------------------------------------------------------------------------------------------------


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
    kind, draw = _kinds()[name], random.Random(f"{seed} {name}")
    place = folder / "files"
    place.mkdir(parents=True)
    paths = kind.make(place)
    sound = {path: path.read_bytes() for path in paths}
    kind.read(place)

    def restore() -> None:
        for path, data in sound.items():
            _gone(path).write_bytes(data)

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
    """Tries all kinds, each in a process of its own: a crash, a hang or a bomb is that process' end alone."""
    return [_in_process(name, count, folder / name.replace(" ", "-")) for name in _kinds()]


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
