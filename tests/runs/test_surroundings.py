"""What happens around a run: signals, clocks, full disks, readers beside writers, several commands at once."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nas_moreau.cli import main
from nas_moreau.cli.listing import runs
from nas_moreau.cli.options import new_folder
from nas_moreau.config import load_config
from nas_moreau.errors import InputError
from nas_moreau.runs import DiskFull, Monitor, RunFolder, load_checkpoint, save_checkpoint
from nas_moreau.runs import folder as run_folder
from nas_moreau.runs.history import Stage
from nas_moreau.runs.own_checkpoints import settle
from nas_moreau.search.stage import search
from nas_moreau.text import spreadsheet_text
from nas_moreau.training.signals import Interrupted, StopRequest

QUICK = ("search.epochs=2", "search.steps_per_epoch=1", "logging.tensorboard=false")


# --- signals ---------------------------------------------------------------------------------------------------------


def test_a_terminal_that_is_closed_saves(tmp_path, tiny_config, tiny_data, stop_at):
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with pytest.raises(Interrupted) as caught:
            search(tiny_config(*QUICK), tmp_path / "a", data=tiny_data, hooks=[stop_at(1, signal.SIGHUP)])
    finally:
        signal.signal(signal.SIGHUP, former)
    assert caught.value.number == signal.SIGHUP
    assert load_checkpoint(tmp_path / "a" / "checkpoints")[0]["counters"]["step"] == 1
    assert search(tiny_config(*QUICK), tmp_path / "a", True, tiny_data).steps == 2


def test_a_run_under_nohup_goes_on():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, former)


# --- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-3600, 0, 1, 86_400 * 400])
def test_points_are_shown_once_whatever_the_clock_says(shift, tmp_path, monkeypatch):
    real = time.time
    with Monitor(tmp_path) as monitor:
        for step in range(6):
            monitor.scalars({"loss": float(step)}, step)
    for first, by in ((3, shift), (5, 2 * shift)):
        monkeypatch.setattr(time, "time", lambda by=by: real() + by)
        with Monitor(tmp_path, step=first) as monitor:
            for step in range(first, 8):
                monitor.scalars({"loss": 100.0 * first + step}, step)
    monkeypatch.undo()
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    found = [(event.step, event.value) for event in board.Scalars("loss")]
    assert found == [(0, 0), (1, 1), (2, 2), (3, 303), (4, 304), (5, 505), (6, 506), (7, 507)]


# --- full disks ------------------------------------------------------------------------------------------------------


def no_space(*arguments, **keywords):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_for_tensorboard_is_one_sentence(tmp_path, monkeypatch, capfd):
    former = threading.excepthook
    with pytest.raises(DiskFull, match="tensorboard") as caught, Monitor(tmp_path) as monitor:
        monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", no_space)
        monitor.scalars({"loss": 1.0}, 0)
        monitor.flush()
    assert caught.value.errno == errno.ENOSPC
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is former


def test_a_disk_that_is_full_for_the_log_is_one_sentence(tmp_path, monkeypatch):
    with RunFolder.open(tmp_path / "a", {"seed": 1}, "search") as run:
        before = (run.path / "log.txt").read_bytes()
        with monkeypatch.context() as patch, pytest.raises(DiskFull, match=r"log\.txt"):
            patch.setattr(os, "write", no_space)
            run.log("hello")
        assert (run.path / "log.txt").read_bytes() == before


def test_a_full_disk_at_the_very_end_loses_nothing(tmp_path, monkeypatch, tiny_config, tiny_data):
    real = run_folder.write_recorded

    def full_at_the_end(folder, files, lock=None):
        if "result.json" in files:
            raise DiskFull(folder / "result.json", 10)
        real(folder, files, lock)

    with monkeypatch.context() as patch, pytest.raises(DiskFull):
        patch.setattr(run_folder, "write_recorded", full_at_the_end)
        search(tiny_config(*QUICK), tmp_path / "a", data=tiny_data)
    stage = Stage(tmp_path / "a")
    assert stage.state == "failed" and not stage.finished and not stage.result
    assert search(tiny_config(*QUICK), tmp_path / "a", True, tiny_data).held_out_accuracy is not None
    assert Stage(tmp_path / "a").finished


def test_the_command_line_reports_a_full_disk_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("nas_moreau.runs.history.Stage.state", property(no_space))
    monkeypatch.setattr("nas_moreau.cli.listing.runs", no_space)
    assert main(["list", "runs"]) == 1
    text = capsys.readouterr().err
    assert "space" in text and "OSError" not in text and text.count("\n") == 1


# --- readers beside writers ------------------------------------------------------------------------------------------


def test_a_reader_beside_a_saver_never_misses_a_checkpoint_nor_sees_an_older_one(tmp_path):
    save_checkpoint(tmp_path, {"number": 0})
    done = threading.Event()

    def save():
        for number in range(1, 150):
            save_checkpoint(tmp_path, {"number": number, "filler": torch.zeros(100, device="cpu")})
        done.set()

    saver = threading.Thread(target=save)
    saver.start()
    newest = 0
    while not done.is_set():
        found = load_checkpoint(tmp_path)
        assert found is not None and found[0]["number"] >= newest
        newest = found[0]["number"]
    saver.join()
    assert load_checkpoint(tmp_path)[0]["number"] == 149


def test_a_save_killed_between_its_renames_is_completed(tmp_path):
    folder = tmp_path / "checkpoints"
    for number in (1, 2):
        save_checkpoint(folder, {"number": number})
    (folder / "last.pt").rename(folder / "last.pt.tmp")
    settle(tmp_path)
    assert sorted(os.listdir(folder)) == ["last.pt", "previous.pt"] and load_checkpoint(folder)[0]["number"] == 2
    (folder / "last.pt").rename(folder / "last.pt.tmp")
    (folder / "last.pt.tmp").write_bytes(b"torn")
    settle(tmp_path)
    assert load_checkpoint(folder)[0]["number"] == 1


def test_a_checkpoint_that_is_no_plain_file_blocks_nobody(tmp_path):
    save_checkpoint(tmp_path, {"number": 1})
    (tmp_path / "last.pt").rename(tmp_path / "previous.pt")
    os.mkfifo(tmp_path / "last.pt")
    payload, note = load_checkpoint(tmp_path)
    assert payload["number"] == 1 and "plain file" in note


# --- several runs ----------------------------------------------------------------------------------------------------


def test_commands_at_once_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = Namespace(output=None, resume=False, dry_run=False)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: new_folder(args, "search"), range(8)))
    assert len(set(found)) == 8 and all(path.is_dir() for path in found)
    planned = new_folder(Namespace(output=None, resume=False, dry_run=True), "search")
    assert planned not in found and not planned.exists()


def test_one_damaged_run_does_not_end_the_list(tmp_path):
    texts = [
        "[]",
        "3",
        "[" * 100_000,
        "\xff",
        '{"stage": 3}',
        '{"state": []}',
        '{"stage": "search", "updated": [1]}',
        "{",
    ]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "status.json").write_text(text, encoding="latin-1")
    results = ['{"health": 3}', '{"held_out_accuracy": "x"}', '{"health": {"verdict": []}}', "[1]"]
    for number, text in enumerate(results):
        (tmp_path / f"r{number}").mkdir()
        (tmp_path / f"r{number}" / "status.json").write_text('{"stage": "search", "state": "finished"}')
        (tmp_path / f"r{number}" / "result.json").write_text(text)
    RunFolder.open(tmp_path / "good", {"seed": 1}, "search").close()
    found = {os.path.basename(row["run"]): row for row in runs(tmp_path)}
    assert len(found) == len(texts) + len(results) + 1
    assert (
        all(found[str(number)]["state"] == "unreadable" for number in (0, 1, 2, 3, 7))
        and found["r3"]["state"] == "unreadable"
    )
    assert found["good"]["stage"] == "search"


def test_a_killed_run_is_not_shown_as_running(tmp_path):
    with RunFolder.open(tmp_path / "a", {"seed": 1}, "search"):
        assert [row["state"] for row in runs(tmp_path)] == ["running"]
        os.unlink(tmp_path / "a" / ".lock")  # of no consequence: the folder itself is locked
        assert [row["state"] for row in runs(tmp_path)] == ["running"]
    assert [row["state"] for row in runs(tmp_path)] == ["killed"]


# --- text of users ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(text):
    assert spreadsheet_text(text) == f"'{text}" and spreadsheet_text("cat, dog") == "cat, dog"


@pytest.mark.parametrize(
    "override",
    [
        "seed=true",
        "search.epochs=3.0",
        "search.channels=100000000",
        "retrain.layers=1000000000",
        "search.weights.lr=true",
    ],
)
def test_numbers_are_what_is_written(override):
    with pytest.raises(InputError, match=override.partition("=")[0]):
        load_config(overrides=[override])
    assert load_config(overrides=["search.weights.lr=1", "seed=3"]).search.weights.lr == 1.0
