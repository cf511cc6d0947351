"""Every kind of file that a user can hand in: how to make a sound one, how to forge bad ones, and what reads it."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Kind(NamedTuple):
    """A kind of file: makes sound files in a folder and names them, forges bad ones, reads the folder."""

    make: Callable[[Path], list[Path]]
    forged: Callable[[Path], list[Callable[[], None]]]
    read: Callable[[Path], Any]


def _one(name: str, content: Callable[[], bytes]) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        (folder / name).write_bytes(content())
        return [folder / name]

    return make


def _texts(name: str, *texts: bytes) -> Callable[[Path], list[Callable[[], None]]]:
    def forged(folder: Path) -> list[Callable[[], None]]:
        writes: list[Callable[[], None]] = [lambda t=t: (folder / name).write_bytes(t) for t in texts]
        return [*writes, lambda: _special(folder / name, "/dev/zero"), lambda: os.mkfifo(gone(folder / name))]

    return forged


def gone(path: Path) -> Path:
    """Returns the path, at which nothing stands any more."""
    path.unlink(missing_ok=True)
    return path


def _special(path: Path, target: str) -> None:
    gone(path).symlink_to(target)


BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(12)
)
YAML_FORGERIES = (
    BOMB,
    b"[" * 60_000,
    b"{" * 60_000,
    b"- " * 30_000,
    b"? " * 30_000,
    b"a: " * 20_000,
    b"#" * 70_000,
    b"x" * 10_000_000,
    b"seed: " + b"1:" * 30_000 + b"1",
    b"seed: 0x" + b"f" * 60_000,
    b"seed: " + b"9" * 60_000,
    b"a: !!binary x",
    b"".join(b"k%d: 1\n" % i for i in range(6000)),
    b"seed: 0001-01-01 00:00:00 +23:59",
    b"? [1]\n: 2",
    b"? {a: 1}\n: 2",
    b"name: ../../../tmp/owned\n",
    b"seed: !!python/object/apply:os.system ['touch owned']",
    b"!!set {a, b}",
    b"=: =",
)


def _preset() -> bytes:
    from nas_moreau.presets import preset_text

    return preset_text("smoke").encode()


def _space() -> bytes:
    return (Path(__file__).resolve().parents[2] / "search_spaces" / "toy.yaml").read_bytes()


def _genotype() -> bytes:
    from nas_moreau.architecture.spaces.zoo import published_cell

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
        huge,
        long,
        lambda: _special(place, "/dev/zero"),
        lambda: os.mkfifo(gone(place)),
        lambda: _special(place, "/etc/passwd"),
        lambda: _special(place, str(place)),
    ]


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
        archive(_npy("(10737418240, 1, 1, 1)")),
        archive(_npy("(99999999999999999999, 9, 9, 3)")),
        archive(_npy("(-1, 4, 4, 3)")),
        archive(_npy("(12, 4, 4, 3)", "|O", pickle.dumps([1]))),
        archive(_npy("__import__('os').system('touch owned')")),
        archive(_npy("(100000000, 1, 1, 1)", body=bytes(100_000_000)), zipfile.ZIP_DEFLATED),
        archive(b"\x93NUMPY\x02\x00" + b"\xff" * 4),
        archive(_npy("(" * 2000)),
        archive(_npy("(" + "1," * 40 + ")")),
        archive(b"x", name="../../../tmp/owned"),
        claimed,
        lambda: _special(path, "/dev/zero"),
        lambda: os.mkfifo(gone(path)),
    ]


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
        header(10_000_000, 32),
        header(2**32 - 1, 2**16),
        header(100_000, 60, bytes(100_000_000)),
        header(12, 4, bytes(50_000_000)),
        header(0, 4),
        header(12, 0),
        lambda: _special(path, "/dev/zero"),
        lambda: os.mkfifo(gone(path)),
    ]


def _checkpoint(folder: Path) -> list[Path]:
    import torch

    from nas_moreau.runs import save_checkpoint

    save_checkpoint(
        folder, {"step": 3, "x": [torch.ones(3, 2)], "sums": {"a": torch.zeros(())}, "best": 0.5, "n": None}
    )
    return [folder / "last.pt"]


class _Evil:
    def __reduce__(self) -> Any:
        return (os.system, ("touch owned",))


def _forged_checkpoints(folder: Path) -> list[Callable[[], None]]:
    import torch

    from nas_moreau.runs.checkpoint import SCHEMA, seal

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
        saved({"a": _Evil()}),
        pickle.dumps(_Evil()),
        saved([1]),
        saved({"a": torch.zeros(1).expand(100_000, 100_000)}),
        packed(),
        saved({"a": torch.eye(3).to_sparse()}),
        b"",
        b"PK\x05\x06" + bytes(18),
        pickle.dumps({"a": 1}),
        saved(None),
        saved({"a": torch.empty(10**12, device="meta")}),
    ]
    writes: list[Callable[[], None]] = [lambda p=p: (folder / "last.pt").write_bytes(seal(p)) for p in payloads]
    return [*writes, lambda: (folder / "last.pt").write_bytes(struct.pack("<8sIQI", b"NASMORCK", SCHEMA, 10 << 30, 0))]


def _read_checkpoint(folder: Path) -> None:
    from nas_moreau.runs import load_checkpoint
    from nas_moreau.runs.checkpoint import seal

    path = folder / "last.pt"
    load_checkpoint(folder)
    if path.is_file() and len(data := path.read_bytes()) > 24:  # and once more with a checksum that is right
        path.write_bytes(seal(data[:-24]))
        load_checkpoint(folder)


def _table() -> bytes:
    from nas_moreau.architecture import load_space

    rows, draw = ["arch,c10_test_200ep"], random.Random(0)
    for _ in range(5):
        cell = load_space("nas_bench_201").random_genotype(draw).to_nas_bench_201()
        rows.append(f"{cell},{draw.uniform(10, 94):.2f}")
    return "\n".join(rows).encode() + b"\n"


def kinds() -> dict[str, Kind]:
    """Returns the kinds by name."""
    from nas_moreau.architecture import load_genotype, load_space
    from nas_moreau.compare.nas_bench_table import load_table
    from nas_moreau.config import load_config
    from nas_moreau.data import load_data

    deep = b'{"version":1,"space":"darts","cells":' + b"[" * 30_000
    genotypes = (
        deep,
        b"|" * 60_000,
        b"Genotype(" * 5000,
        b"Genotype(normal=" + b"(" * 30_000,
        b'{"version": 1e999}',
        b"x" * 10_000_000,
        b'{"cells": {}, "version": 1, "space": "../../../tmp/owned"}',
        b"Genotype(normal=[('x', 9**9**9)])",
        b"{" * 60_000,
        b"Genotype(normal=range(0, 999999999999))",
        b'{"cells": ' + b"9" * 60_000 + b"}",
    )
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
    }
