"""npz files are checked before memory is allocated; each fault has a cause and a cure."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from nas_moreau.data import load_data, npz_file
from nas_moreau.errors import InputError


def arrays(**changes):
    rng = np.random.default_rng(0)
    usual = {
        "x_train": rng.integers(0, 256, (12, 5, 4, 3), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    return {key: value for key, value in {**usual, **changes}.items() if value is not None}


def write(path, **changes):
    np.savez_compressed(path, **arrays(**changes))
    return path


def header(shape, descr="|u1"):
    text = str({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", [np.uint8, np.int32, ">i8", np.uint64])
def test_good_file(tmp_path, save, kind):
    given = arrays()
    given["y_train"], given["y_test"] = given["y_train"].astype(kind), given["y_test"].astype(kind)
    given["x_train"] = np.asfortranarray(given["x_train"])
    save(tmp_path / "a.npz", **given)
    data = load_data(f"npz:{tmp_path / 'a.npz'}")
    assert data.classes == ("0", "1", "2")
    assert data.image_size == (5, 4)
    assert np.array_equal(data.train.pixels.permute(0, 2, 3, 1).numpy(), given["x_train"])
    assert np.array_equal(data.test.pixels.permute(0, 2, 3, 1).numpy(), given["x_test"])
    assert data.train.labels.tolist() == given["y_train"].tolist()
    assert data.train.labels.dtype == torch.int64
    scaled = given["x_train"].reshape(-1, 3) / 255
    assert data.mean == pytest.approx(scaled.mean(0), rel=1e-12)
    assert data.std == pytest.approx(scaled.std(0), rel=1e-12)


# (what the cause names, the arrays that are changed)
FAULTS = [
    (["x_test"], {"x_test": None}),
    (["x_train, y_train"], {"x_train": None, "y_train": None}),
    (["x_train", "float32", "uint8"], {"x_train": np.zeros((12, 5, 4, 3), np.float32)}),
    (["x_train", "object"], {"x_train": np.array([None] * 12, dtype=object)}),
    (["x_train", "(5, 4)", "x_test", "(5, 4, 3)"], {"x_train": np.zeros((12, 5, 4), np.uint8)}),
    (["x_test", "(3, 32, 32)"], {"x_test": np.zeros((6, 3, 32, 32), np.uint8)}),
    (["y_train", "fractions"], {"y_train": np.arange(12) / 2}),
    (["y_train", "(12, 2, 2)"], {"y_train": np.zeros((12, 2, 2), int)}),
    (["x_train", "12 images", "y_train", "11 labels"], {"y_train": np.arange(11) % 3}),
    (["x_test", "6 images", "y_test", "7 labels"], {"y_test": np.arange(7) % 3}),
    (["x_test", "empty"], {"x_test": np.zeros((0, 5, 4, 3), np.uint8), "y_test": np.zeros(0, int)}),
    (["x_train", "empty"], {"x_train": np.zeros((12, 5, 0, 3), np.uint8)}),
    (["y_train", "between -1 and 1"], {"y_train": np.arange(12) % 3 - 1}),
    (["y_test", "label 3", "0 to 2"], {"y_test": np.array([0, 1, 2, 3, 0, 0])}),
    (["y_test", "label -7", "0 to 2"], {"y_test": np.array([0, 1, 2, -7, 0, 0])}),
    (["label 18446744073709551615"], {"y_test": np.full(6, 2**64 - 1, np.uint64)}),
    (["(5, 4, 3)", "(4, 4, 3)"], {"x_test": np.zeros((6, 4, 4, 3), np.uint8)}),
]


@pytest.mark.parametrize("named, changes", FAULTS, ids=[" ".join(named) for named, _ in FAULTS])
def test_faults(tmp_path, named, changes):
    path = write(tmp_path / "a.npz", **changes)
    with pytest.raises(InputError) as caught:
        load_data(f"npz:{path}")
    assert all(text in caught.value.cause for text in [str(path), *named])
    assert caught.value.cure.endswith(".")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_data(f"npz:{tmp_path / 'absent.npz'}")
    with pytest.raises(InputError, match=f"folder:{tmp_path}"):
        load_data(f"npz:{tmp_path}")


def test_files_that_are_no_archive(tmp_path):
    path = tmp_path / "a.npz"
    for content in (b"", b"PK\x03\x04 and nothing more", np.random.default_rng(0).bytes(500)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.npz"):
            load_data(f"npz:{path}")


def test_flipped_and_missing_bytes_are_found(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays())
    good = path.read_bytes()
    place = good.index(arrays()["x_train"].tobytes()) + 10
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    with pytest.raises(InputError, match=r"a\.npz"):
        load_data(f"npz:{path}")
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match=r"a\.npz"):
        load_data(f"npz:{path}")


def write_members(path, members, compression=zipfile.ZIP_DEFLATED):
    """Writes an archive in which x_train is as given and the rest is good."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key, value in arrays().items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, value)
            archive.writestr(f"{key}.npy", members.get(key, buffer.getvalue()))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "a.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", header((12, 5, 4, 3)) + bytes(720))
    with pytest.raises(InputError, match="x_train"):
        load_data(f"npz:{path}")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "header"),
        (b"\x93NUMPY\x01\x00\xff\xff", "header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{" + b" " * 1000, "header"),
        (b"no array at all", "header"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((((", "header"),
        (header((3_500_000, 32, 32, 3)) + b"abc", "10752000000 bytes"),
        (header((2**62, 2**62, 4, 3)) + b"abc", "bytes"),
        (header((-12, -5, 4, 3)) + bytes(720), "empty"),
        (header((12, 5, 4, 3)) + bytes(719), "719"),
        (header((12, 5, 4, 3)) + bytes(721), "721"),
    ],
)
def test_forged_headers_allocate_no_memory(tmp_path, content, named):
    path = tmp_path / "a.npz"
    write_members(path, {"x_train": content})
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        load_data(f"npz:{path}")
    assert "x_train" in caught.value.cause and named in caught.value.cause
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    path = tmp_path / "a.npz"
    count = 30_000  # 92 MB of zeros in 90 kB
    write_members(path, {"x_train": header((count, 32, 32, 3)) + bytes(count * 3072)})
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(InputError, match=r"x_train .*\d+ times"):
        load_data(f"npz:{path}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_limit_on_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_file, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="limit"):
        load_data(f"npz:{write(tmp_path / 'a.npz')}")


def test_pickled_objects_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "a.npz"
    np.savez(path, **arrays(y_train=np.array([Trap()] * 12, dtype=object)))
    with pytest.raises(InputError, match=r"y_train .*object"):
        load_data(f"npz:{path}")
    assert not (tmp_path / "sprung").exists()


def test_a_name_with_a_line_break_makes_no_second_line(tmp_path):
    np.savez(tmp_path / "a.npz", **{"x\ntrain": np.zeros(1)})
    with pytest.raises(InputError, match=r"x\\ntrain") as caught:
        load_data(f"npz:{tmp_path / 'a.npz'}")
    assert "\n" not in str(caught.value)
