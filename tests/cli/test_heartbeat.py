"""Commands that work for long show that they do; --quiet prints the result and errors alone."""

import io
import json
import os
import sys
import threading
import time

import pytest

from nas_moreau.architecture import load_genotype
from nas_moreau.cli import entry as cli
from nas_moreau.cli import heartbeat as module
from nas_moreau.cli import listing
from nas_moreau.cli.heartbeat import Heartbeat, heartbeat, note
from nas_moreau.compare import child_runs
from nas_moreau.errors import InputError
from nas_moreau.training.signals import StopRequest


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return -1


def test_a_file_gets_a_line_after_five_seconds_and_then_every_ten():
    clock, stream = Clock(), io.StringIO()
    shown = Heartbeat("loading", stream, clock)
    times = []
    for clock.now in range(1, 40):
        before = stream.getvalue()
        shown.beat()
        if stream.getvalue() != before:
            times.append(clock.now)
    assert times == [5, 15, 25, 35]
    shown.note("measuring")
    clock.now += 4
    shown.beat()
    assert stream.getvalue().endswith("measuring\n")
    clock.now += 1
    shown.beat()
    assert stream.getvalue().splitlines()[-1].startswith("measuring") and stream.getvalue().endswith("5 s\n")


def test_a_message_that_is_no_activity_leaves_what_is_being_done():
    clock, stream = Clock(), io.StringIO()
    shown = Heartbeat("loading", stream, clock)
    clock.now = 4
    shown.note("11 images", activity=False)
    clock.now = 9
    shown.beat()
    assert stream.getvalue().splitlines()[0] == "11 images" and stream.getvalue().splitlines()[1].startswith("loading")


def test_a_terminal_is_never_silent_for_two_seconds_and_keeps_messages_alone():
    clock, stream = Clock(), Terminal()
    shown = Heartbeat("loading", stream, clock)
    for clock.now in range(1, 10):
        before = stream.getvalue()
        shown.beat()
        assert stream.getvalue() != before
    shown.note("measured")
    shown.close()
    last = stream.getvalue().split("\r\x1b[K")[-1]
    assert last == "measured\n"


def test_messages_in_the_context_go_through_it(capsys, monkeypatch):
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.5)
    with heartbeat("waiting"):
        note("one")
        limit = time.monotonic() + 20
        text = ""
        while text.count("one") < 2 and time.monotonic() < limit:
            time.sleep(0.1)
            text += capsys.readouterr().err
    note("two")
    assert text.count("one") >= 2 and capsys.readouterr().err == "two\n"


def test_a_terminal_without_a_width_gets_whole_lines(monkeypatch):
    clock, stream = Clock(), Terminal()
    shown = Heartbeat("loading what takes long", stream, clock)
    monkeypatch.setattr(module.os, "get_terminal_size", lambda *_: os.terminal_size((0, 0)))
    clock.now = 3
    shown.beat()
    assert "loading what takes long" in stream.getvalue()


def test_a_reader_that_is_gone_ends_no_thread_with_a_traceback(monkeypatch):
    tried, failures = threading.Event(), []

    class Gone(io.StringIO):
        def write(self, text):
            tried.set()
            raise BrokenPipeError

    monkeypatch.setattr(module, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(threading, "excepthook", failures.append)
    monkeypatch.setattr(sys, "stderr", Gone())
    with heartbeat("waiting"):
        assert tried.wait(20)
    assert not failures


def test_commands_that_load_show_it(capsys, monkeypatch):
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.0)
    shown = threading.Event()
    monkeypatch.setattr(Heartbeat, "beat", lambda self: shown.set())
    monkeypatch.setitem(listing.LISTS, "spaces", lambda: [{"name": str(shown.wait(20))}])
    assert cli.main(["list", "spaces", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "True"}]


def test_the_commands_of_a_comparison_are_quiet_too(tmp_path, capfd):
    """What they print goes to their logs."""
    log = tmp_path / "one.log"
    command = child_runs.Command("one", ["show", "no-such-cell"], log)
    for quiet in (False, True):
        with module.silence(quiet), StopRequest() as stop, pytest.raises(InputError):
            child_runs.run_all([iter([command])], 1, stop, str(tmp_path))
        assert ("no-such-cell" in capfd.readouterr().err) is not quiet
    assert "no-such-cell" in log.read_text()


def test_quiet_prints_the_result_and_errors_alone(capsys, tmp_path):
    command = ["show", "DARTS_V2", "--draw", str(tmp_path / "cell.svg")]
    assert cli.main(command) == 0
    loud = capsys.readouterr()
    assert loud.err and cli.main([*command, "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert quiet.out == loud.out and quiet.err == ""
    assert cli.main(["show", "no-such-thing", "-q"]) == 2
    assert "no-such-thing" in capsys.readouterr().err


def test_a_run_below_checkpoints_is_shown_by_its_name(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "checkpoints" / "first"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["show", "first"]) == 2
    (folder / "status.json").write_text("{}", encoding="utf-8")
    (folder / "genotype.json").write_text(load_genotype("DARTS_V2").to_json(), encoding="utf-8")
    assert cli.main(["show", "first"]) == 0
    assert load_genotype("DARTS_V2").digest() in capsys.readouterr().out
