"""MNIST-style files: magic numbers, sizes and lengths are checked, unpacking is bounded."""

from __future__ import annotations

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from nas_moreau.data import load_data
from nas_moreau.data.idx_files import FILES
from nas_moreau.errors import InputError


def encode(array):
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for (part, kind), name in FILES.items():
        count = 12 if part == "train" else 6
        array = rng.integers(0, 256, (count, 4, 5)) if kind == "images" else np.arange(count) % 3
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(encode(array)))
    return tmp_path


def replace(folder, part, kind, content, packed=True):
    (folder / f"{FILES[part, kind]}.gz").write_bytes(gzip.compress(content) if packed else content)


def test_good_folder(folder):
    images = np.arange(12 * 20).reshape(12, 4, 5)
    replace(folder, "train", "images", encode(images))
    data = load_data(f"idx:{folder}")
    assert data.train.pixels[:, 0].tolist() == (images % 256).tolist()
    assert data.train.labels.tolist() == [0, 1, 2] * 4
    assert (data.channels, data.image_size, data.classes, len(data.test)) == (1, (4, 5), ("0", "1", "2"), 6)


def test_files_without_gzip_are_read_too(folder):
    for name in FILES.values():
        packed = folder / f"{name}.gz"
        (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    assert len(load_data(f"idx:{folder}").train) == 12


GOOD = encode(np.zeros((12, 4, 5)))
# (what the cause names, the bytes of the training images)
FAULTS = [
    (["0x00000801", "0x00000803"], encode(np.zeros(12))),
    (["header"], GOOD[:10]),
    (["239 of 240 bytes"], GOOD[:-1]),
    (["240 bytes"], GOOD + b"x"),
    (["11 images", "12 labels"], encode(np.zeros((11, 4, 5)))),
    (["size"], encode(np.zeros((12, 5, 4)))),
    (["GiB"], struct.pack(">4I", 0x0803, 2**32 - 1, 2**32 - 1, 2**32 - 1)),
    (["0 images"], struct.pack(">4I", 0x0803, 0, 4, 5)),
]


@pytest.mark.parametrize("named, content", FAULTS, ids=[" ".join(named) for named, _ in FAULTS])
def test_faults(folder, named, content):
    replace(folder, "train", "images", content)
    with pytest.raises(InputError) as caught:
        load_data(f"idx:{folder}")
    assert all(text in caught.value.cause for text in named)
    assert caught.value.cure.endswith(".")


def test_damaged_gzip(folder):
    packed = gzip.compress(GOOD)
    for content in (b"no gzip at all", packed[:-12], packed[:-6] + b"abc" + packed[-3:]):
        replace(folder, "train", "images", content, packed=False)
        with pytest.raises(InputError, match="train-images"):
            load_data(f"idx:{folder}")


def test_a_header_alone_allocates_no_memory(folder):
    promise = struct.pack(">4I", 0x0803, 100_000, 200, 200)  # 4 GB
    replace(folder, "train", "images", promise)
    tracemalloc.start()
    with pytest.raises(InputError, match="4000000000 bytes"):
        load_data(f"idx:{folder}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


def test_a_bomb_is_not_unpacked_beyond_its_header(folder):
    replace(folder, "train", "images", GOOD + bytes(50 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match="240 bytes"):
        load_data(f"idx:{folder}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_labels_must_fit(folder):
    replace(folder, "train", "labels", encode(np.arange(12) % 2 * 2))
    with pytest.raises(InputError, match="label 1"):
        load_data(f"idx:{folder}")
    replace(folder, "train", "labels", encode(np.arange(12) % 2))
    with pytest.raises(InputError, match=r"label 2"):
        load_data(f"idx:{folder}")


def test_missing_files(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\.gz"):
        load_data(f"idx:{folder}")
    with pytest.raises(InputError, match="does not exist"):
        load_data(f"idx:{folder / 'absent'}")
