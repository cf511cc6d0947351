"""Checkpoints survive damage, kills and a full disk."""

from __future__ import annotations

import collections
import errno
import io
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch

from nas_moreau.errors import InputError
from nas_moreau.runs import checkpoint
from nas_moreau.runs.atomic import DiskFull
from nas_moreau.runs.checkpoint import SCHEMA, Damaged, load_checkpoint, read_checkpoint, save_checkpoint, seal


def sample(epoch: int) -> dict:
    return {
        "epoch": epoch,
        "x": [torch.arange(3, dtype=torch.float64, device="cpu") + epoch],
        "name": "né\n",
        "flags": (True, None, 1.5),
        "moments": {0: {"step": 3}},
    }


def loaded_epoch(folder: Path) -> int:
    found = load_checkpoint(folder)
    assert found is not None
    return found[0]["epoch"]


def test_what_is_saved_comes_back(tmp_path):
    payload = sample(4)
    save_checkpoint(tmp_path / "checkpoints", payload)
    found, note = load_checkpoint(tmp_path / "checkpoints")
    assert torch.equal(found.pop("x")[0], payload.pop("x")[0])
    assert found == payload and type(found["flags"]) is tuple
    assert note == "last.pt is used."


@pytest.mark.parametrize("mapped", [False, True])
def test_other_programs_read_a_checkpoint_by_torch_alone(mapped, tmp_path):
    save_checkpoint(tmp_path, sample(4), best=True)
    for name in ("last.pt", "best.pt"):
        found = torch.load(tmp_path / name, weights_only=True, mmap=mapped)
        assert found["epoch"] == 4 and torch.equal(found["x"][0], sample(4)["x"][0])


def test_strides_of_channels_last_and_dtypes_survive(tmp_path):
    weight = torch.randn(4, 3, 2, 2, device="cpu").to(memory_format=torch.channels_last).to(torch.bfloat16)
    save_checkpoint(tmp_path, {"w": weight})
    found = load_checkpoint(tmp_path)[0]["w"]
    assert found.dtype == torch.bfloat16 and found.stride() == weight.stride() and torch.equal(found, weight)


def test_a_view_does_not_take_its_storage_along(tmp_path):
    wide = torch.zeros(1_000_000, dtype=torch.float32, device="cpu")
    save_checkpoint(tmp_path, {"w": wide[:3]})
    assert (tmp_path / "last.pt").stat().st_size < 10_000


def test_parameters_and_ordered_dicts_become_plain(tmp_path):
    layer = torch.nn.Linear(2, 2, device="cpu")
    save_checkpoint(tmp_path, {"state": layer.state_dict(), "w": layer.weight})
    found = load_checkpoint(tmp_path)[0]
    assert type(found["state"]) is dict and type(found["w"]) is torch.Tensor and not found["w"].requires_grad


def test_nothing_there_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "none") is None


def test_previous_and_best_are_kept(tmp_path):
    save_checkpoint(tmp_path, sample(1), best=True)
    save_checkpoint(tmp_path, sample(2))
    assert [read_checkpoint(tmp_path / f"{n}.pt")["epoch"] for n in ("last", "previous", "best")] == [2, 1, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt", "previous.pt"]


@pytest.mark.parametrize(
    "value",
    [
        object(),
        b"bytes",
        {1, 2},
        collections.namedtuple("Pair", "a b")(1, 2),
        lambda: 0,
        1j,
        torch.float32,
        torch.zeros(2, device="meta"),
        {(1, 2): 3},
        {None: 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_things_are_refused_by_name_and_nothing_is_written(tmp_path, value):
    with pytest.raises(TypeError, match=r"payload\['deep'\]\[1\]"):
        save_checkpoint(tmp_path / "c", {"deep": [0, value]})
    assert not (tmp_path / "c").exists()


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def decode(data: bytes) -> dict:
    return checkpoint.decode(io.BytesIO(data), len(data))


def test_every_single_bit_flip_is_detected():
    data = checkpoint.encode({"a": 1})
    assert decode(data) == {"a": 1}
    for bit in range(8 * len(data)):
        with pytest.raises(Damaged):
            decode(flipped(data, bit))


def test_every_truncation_and_every_tail_is_detected(tmp_path):
    data = checkpoint.encode({"a": 1})
    for changed in [data[:length] for length in range(len(data))] + [data + b"\0", data + data]:
        with pytest.raises(Damaged):
            decode(changed)
    path = tmp_path / "last.pt"
    path.write_bytes(data[:-1])
    with pytest.raises(Damaged):
        read_checkpoint(path)


def test_a_huge_length_is_refused_before_reading(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"x" + struct.pack("<8sIQI", b"NASMORCK", SCHEMA, 10 << 30, 0))
    with pytest.raises(Damaged, match="holds 1 bytes of 10,737,418,240"):
        read_checkpoint(path)


def test_a_damaged_last_falls_back_to_previous_and_says_so(tmp_path):
    save_checkpoint(tmp_path, sample(1))
    save_checkpoint(tmp_path, sample(2))
    path = tmp_path / "last.pt"
    path.write_bytes(flipped(path.read_bytes(), 4000))
    found, note = load_checkpoint(tmp_path)
    assert found["epoch"] == 1
    assert note == "previous.pt is used because last.pt fails its checksum."


def test_two_damaged_files_are_an_input_error(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"")
    (tmp_path / "previous.pt").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"last.pt is cut off .* previous.pt .*not a checkpoint of nas_moreau"):
        load_checkpoint(tmp_path)


def test_a_malicious_pickle_with_a_right_checksum_has_no_effect(tmp_path):
    marker = tmp_path / "owned"

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    torch.save({"a": Evil()}, tmp_path / "evil")
    for data in ((tmp_path / "evil").read_bytes(), pickle.dumps(Evil())):
        (tmp_path / "last.pt").write_bytes(seal(data))
        with pytest.raises(InputError, match="holds no plain data"):
            load_checkpoint(tmp_path)
    assert not marker.exists()


class Killed(BaseException):
    """Stands for kill -9: no handler of the code under test may tidy up after it."""


def killing(call, left: list[int]):
    """Returns `call` as it behaves in a process that is killed after left[0] more such calls."""

    def counted(*arguments, **keywords):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return call(*arguments, **keywords)

    return counted


def test_a_kill_at_any_call_of_the_system_leaves_a_loadable_checkpoint(tmp_path, monkeypatch):
    """Epochs 1 and 2 are saved; the save of 3 is killed before its n-th system call, for every n."""
    outcomes = []
    for point in range(100):
        folder = tmp_path / str(point)
        save_checkpoint(folder, sample(1))
        save_checkpoint(folder, sample(2))
        with monkeypatch.context() as patch:
            left = [point]
            for name in ("open", "write", "fsync", "replace"):
                patch.setattr(os, name, killing(getattr(os, name), left))
            try:
                save_checkpoint(folder, sample(3), best=True)
            except Killed:
                pass
            else:
                break
        outcomes.append(loaded_epoch(folder))
    # best: open write fsync replace open fsync; last: open write fsync replace replace open fsync
    assert len(outcomes) == 13
    assert outcomes == sorted(outcomes) and outcomes[0] == 2 and outcomes[-1] == 3


def test_a_kill_between_the_renames_goes_on_from_the_new_file(tmp_path):
    save_checkpoint(tmp_path, sample(1))
    os.replace(tmp_path / "last.pt", tmp_path / "previous.pt")
    (tmp_path / "last.pt.tmp").write_bytes(checkpoint.encode(sample(2)))
    assert loaded_epoch(tmp_path) == 2


def test_a_torn_first_save_is_no_checkpoint(tmp_path):
    (tmp_path / "last.pt.tmp").write_bytes(checkpoint.encode(sample(2))[:50])
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("room", [0, 1, 19, 500, 1500])
def test_a_full_disk_keeps_the_old_checkpoint_and_counts_the_missing_bytes(tmp_path, monkeypatch, room):
    save_checkpoint(tmp_path, sample(1))
    before = (tmp_path / "last.pt").read_bytes()
    real, left = os.write, room

    def write(handle, data):
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(handle, data[:left])
        left -= count
        return count

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(DiskFull) as caught:
        save_checkpoint(tmp_path, sample(2))
    missing = len(checkpoint.encode(sample(2))) - room
    assert caught.value.missing_bytes == missing and f"{missing:,} bytes were missing" in str(caught.value)
    assert caught.value.errno == errno.ENOSPC and isinstance(caught.value, OSError)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_disk_that_is_full_only_at_fsync_counts_the_whole_file(tmp_path, monkeypatch):
    def fsync(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskFull) as caught:
        save_checkpoint(tmp_path, {"a": 1})
    assert caught.value.missing_bytes == len(checkpoint.encode({"a": 1}))
    assert list(tmp_path.iterdir()) == []
