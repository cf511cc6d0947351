"""files.json: files that belong together are written as one, and what was changed by others is noticed."""

from __future__ import annotations

import json
import os
import random
import tracemalloc

import pytest

from nas_moreau.errors import InputError
from nas_moreau.runs.folder import RunFolder
from nas_moreau.runs.history import Stage
from nas_moreau.runs.lock import LOCK_NAME, Lock, is_held
from nas_moreau.runs.manifest import MANIFEST, finish_writes, read_recorded, remove_recorded, write_recorded
from nas_moreau.runs.plain_files import read_json, read_yaml
from nas_moreau.runs.tables import EpochTable, read_table

OLD = {"genotype.json": b'{"cell": 1}\n', "result.json": b'{"digest": 1}\n'}
NEW = {"genotype.json": b'{"cell": 2}\n', "result.json": b'{"digest": 2}\n', "drawings/a.svg": b"<svg/>"}


class Killed(BaseException):
    pass


@pytest.fixture
def killed_at(monkeypatch):
    """Returns a function that kills `work` before its n-th call of the system; False if there were fewer."""

    def run(n, work):
        left = [n]

        def dying(original):
            def call(*arguments, **keywords):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return original(*arguments, **keywords)

            return call

        with monkeypatch.context() as patch:
            for name in ("open", "write", "fsync", "replace", "unlink", "mkdir"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                work()
            except Killed:
                return True
        return False

    return run


def contents(folder):
    return {name: read_recorded(folder / name) for name in OLD}


def test_files_are_all_old_or_all_new_after_a_kill_at_any_call(tmp_path, killed_at):
    seen = set()
    for n in range(100):
        folder = tmp_path / str(n)
        folder.mkdir()
        write_recorded(folder, OLD)
        killed = killed_at(n, lambda folder=folder: write_recorded(folder, NEW))
        found = contents(folder)
        new = found["result.json"] == NEW["result.json"]
        assert found == {name: (NEW if new else OLD)[name] for name in OLD}
        seen.add(new)
        finish_writes(folder)
        assert (folder / "drawings" / "a.svg").exists() == new
        if not killed:
            break
        write_recorded(folder, NEW)  # it can be done again
        assert {name: (folder / name).read_bytes() for name in NEW} == NEW
    assert n > 15 and seen == {False, True} and not killed


def test_a_reader_completes_what_was_committed(tmp_path, killed_at):
    write_recorded(tmp_path, OLD)
    n = 0
    while killed_at(n, lambda: write_recorded(tmp_path, NEW)) and not (tmp_path / "genotype.json.tmp").exists():
        n += 1
    while read_recorded(tmp_path / "result.json") != NEW["result.json"]:
        n += 1
        killed_at(n, lambda: write_recorded(tmp_path, NEW))
    assert read_recorded(tmp_path / "genotype.json") == NEW["genotype.json"]
    assert {name: (tmp_path / name).read_bytes() for name in NEW} == NEW


@pytest.mark.parametrize("name", ["genotype.json", "result.json", MANIFEST])
def test_every_bit_counts(name, tmp_path):
    write_recorded(tmp_path, OLD)
    data, draw = (tmp_path / name).read_bytes(), random.Random(0)
    for bit in [0, 8 * len(data) - 1, *(draw.randrange(8 * len(data)) for _ in range(60))]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(bytes(changed))
        with pytest.raises(InputError, match=name):
            read_recorded(tmp_path / ("result.json" if name == MANIFEST else name))


def test_a_missing_file_and_other_bytes_are_refused_until_the_record_is_deleted(tmp_path):
    write_recorded(tmp_path, OLD)
    (tmp_path / "genotype.json").unlink()
    (tmp_path / "result.json").write_bytes(b"{}")
    for name in OLD:
        with pytest.raises(InputError, match=name) as caught:
            read_json(tmp_path / name)
        assert MANIFEST in caught.value.cure
    (tmp_path / MANIFEST).unlink()
    assert read_json(tmp_path / "genotype.json") is None and read_json(tmp_path / "result.json") == {}


def test_a_removed_file_is_gone_without_complaint(tmp_path):
    write_recorded(tmp_path, OLD)
    remove_recorded(tmp_path, "result.json")
    remove_recorded(tmp_path, "result.json")
    assert read_recorded(tmp_path / "result.json") is None and read_recorded(tmp_path / "genotype.json")


@pytest.mark.parametrize("data", [b"\xff\xfe{}", b"[]", b"3", b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e}', b"{}\x00"])
def test_files_of_others_are_one_sentence(data, tmp_path):
    (tmp_path / "status.json").write_bytes(data)
    with pytest.raises(InputError, match=r"status\.json"):
        read_json(tmp_path / "status.json")
    (tmp_path / "config.yaml").write_bytes(b"\xff" + data)
    with pytest.raises(InputError, match=r"config\.yaml"):
        read_yaml(tmp_path / "config.yaml")


def test_what_is_no_plain_file_blocks_nobody(tmp_path):
    os.mkfifo(tmp_path / "status.json")
    (tmp_path / "config.yaml").symlink_to("/dev/zero")
    (tmp_path / "result.json").mkdir()
    for name in ("status.json", "config.yaml", "result.json"):
        with pytest.raises(InputError, match=name):
            read_recorded(tmp_path / name)


# --- links -----------------------------------------------------------------------------------------------------------

LINKS = [
    "status.json.tmp",
    "config.yaml.tmp",
    "files.json.tmp",
    "log.txt",
    ".lock",
    "metrics.csv",
    "alphas.csv",
    "result.json",
    "files.json",
    "checkpoints",
    "checkpoints/last.pt.tmp",
    "checkpoints/best.pt.tmp",
    "tensorboard",
    "tensorboard/events",
    "genotype.json.tmp",
]


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_a_link(name, tmp_path):
    folder, victim = tmp_path / "run", tmp_path / "victim"
    RunFolder.open(folder, {"seed": 1}, "search").close()
    if "." in name or name == "tensorboard/events":
        victim.write_text("mine")
    else:
        victim.mkdir()
    (folder / name).parent.mkdir(exist_ok=True)
    if (folder / name).exists():
        (folder / name).unlink()
    (folder / name).symlink_to(victim)
    with pytest.raises(InputError, match="link"):
        RunFolder.open(folder, {"seed": 1}, "search", resume=True)
    assert victim.read_text() == "mine" if victim.is_file() else not list(victim.iterdir())


def test_a_link_that_appears_while_a_run_writes_is_replaced_or_refused(tmp_path):
    from nas_moreau.runs import save_checkpoint

    victim = tmp_path / "victim"
    victim.write_text("mine")
    with RunFolder.open(tmp_path / "run", {"seed": 1}, "search") as run:
        for name in ("status.json", "status.json.tmp", "files.json.tmp", "log.txt"):
            (run.path / name).unlink(missing_ok=True)
            (run.path / name).symlink_to(victim)
        run.status("running", step=1)
        with pytest.raises(OSError):
            run.log("hello")
        (run.path / "checkpoints").mkdir()
        for name in ("last.pt.tmp", "best.pt.tmp"):
            (run.path / "checkpoints" / name).symlink_to(victim)
        save_checkpoint(run.path / "checkpoints", {"step": 1}, best=True)
    assert victim.read_text() == "mine"
    assert not (run.path / "status.json").is_symlink() and read_json(run.path / "status.json")["step"] == 1


# --- the lock --------------------------------------------------------------------------------------------------------


def test_the_lock_holds_even_if_its_file_is_deleted(tmp_path):
    lock = Lock.take(tmp_path)
    assert is_held(tmp_path)
    (tmp_path / LOCK_NAME).unlink()
    with pytest.raises(InputError, match="in use"):
        Lock.take(tmp_path)
    lock.release()
    assert not is_held(tmp_path)
    Lock.take(tmp_path).release()


# --- tables ----------------------------------------------------------------------------------------------------------


def table(path, epochs=4):
    rows = EpochTable(path)
    for epoch in range(epochs):
        rows.append([{"epoch": epoch, "loss": 0.5 * epoch}])
    return path


def test_an_unfinished_row_is_no_damage(tmp_path):
    path = table(tmp_path / "metrics.csv")
    with open(path, "ab") as file:
        file.write(b"4,0.\xff")
    assert len(read_table(path)) == 4
    assert EpochTable(path, 4).columns == ("epoch", "loss")


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: None,
        lambda data: data.replace(b"1,0.5\n", b""),
        lambda data: data.replace(b"1,0.5\n", b"1,0.5\v"),
        lambda data: data.replace(b"1,0.5\n", b"1,0.5\n1,0.5\n"),
        lambda data: data.replace(b"1,0.5\n", b"one,0.5\n"),
        lambda data: data.replace(b"epoch", b"epocj"),
        lambda data: data.replace(b"0.5", b"\xff.5"),
        lambda data: data.replace(b"0.5", b'"0.5'),
        lambda data: b"",
    ],
)
def test_a_run_is_not_resumed_on_a_damaged_table(change, recorded, tmp_path):
    from nas_moreau.runs import Monitor

    path = table(tmp_path / "metrics.csv")
    data = change(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    if not recorded:
        (tmp_path / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"metrics\.csv"):
        Monitor(tmp_path, resume_from_epoch=4, tensorboard=False)


def test_a_table_of_more_rows_than_a_run_writes_is_refused_before_it_is_taken_apart(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,loss\n" + "1,2\n" * 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="1,000,000 rows"):
            Stage(tmp_path).metrics  # noqa: B018
        assert tracemalloc.get_traced_memory()[1] < 10 * (tmp_path / "metrics.csv").stat().st_size
    finally:
        tracemalloc.stop()
    (tmp_path / "alphas.csv").write_text("epoch,a,b,c\n" + "1,2,3,4\n" * 1_100_000)
    with pytest.raises(InputError, match="1,100,000 rows"):
        read_table(tmp_path / "alphas.csv")


def test_rows_with_several_lines_an_epoch_must_be_whole(tmp_path):
    rows = EpochTable(tmp_path / "alphas.csv")
    for epoch in range(3):
        rows.append([{"epoch": epoch, "edge": edge} for edge in "ab"])
    data = (tmp_path / "alphas.csv").read_bytes()
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "alphas.csv").write_bytes(data.replace(b"1,b\n", b""))
    with pytest.raises(InputError, match=r"alphas\.csv"):
        EpochTable(tmp_path / "alphas.csv", 3)


def test_a_kill_while_rows_are_cut_off_loses_nothing(tmp_path, killed_at):
    for n in range(60):
        path = table(tmp_path / f"{n}" / "metrics.csv") if (tmp_path / f"{n}").mkdir() is None else None
        killed = killed_at(n, lambda path=path: EpochTable(path, 2).append([{"epoch": 2, "loss": 9.0}]))
        assert [row["epoch"] for row in read_table(path)][:2] == ["0", "1"]
        EpochTable(path, 2).append([{"epoch": 2, "loss": 9.0}])
        assert path.read_text() == "epoch,loss\n0,0.0\n1,0.5\n2,9.0\n"
        if not killed:
            break
    assert not killed and n > 10
    assert json.loads((path.parent / MANIFEST).read_text())["tables"]["metrics.csv"][0] == path.stat().st_size
