"""Signs of life: what is being done, and for how long, while nothing else is printed."""

import io
import os
import sys
import threading
import time

from nas_moreau.runs import Progress
from nas_moreau.runs import heartbeat as module
from nas_moreau.runs.heartbeat import Heartbeat, doing, heartbeat, note, pause


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


def signs(stream, shown, clock, seconds):
    """Returns the seconds at which something was written, of one beat a second."""
    found = []
    for second in range(1, seconds + 1):
        clock.now += 1
        before = stream.getvalue()
        shown.beat()
        if stream.getvalue() != before:
            found.append(second)
    return found


def test_a_bar_is_never_silent_for_two_seconds_between_steps():
    clock, stream = Clock(), Terminal()
    with Progress(4, "search", stream, clock=clock, epoch_steps=2) as progress:
        assert signs(stream, progress, clock, 3) == [1, 2, 3]  # the first step compiles
        progress.update(1, loss=2.0)
        progress.doing("evaluating")
        assert signs(stream, progress, clock, 4) == [1, 2, 3, 4] and "evaluating ... 4 s" in stream.getvalue()
        progress.note("cell 1 of 8")
        assert signs(stream, progress, clock, 2) == [1, 2] and "cell 1 of 8 ... 2 s" in stream.getvalue()
        progress.update(2)
        clock.now += 1
        progress.beat()
        assert stream.getvalue().rpartition("search")[2].strip().startswith("... 1 s")


def test_lines_of_progress_in_a_file_have_signs_of_life_between_them():
    clock, stream = Clock(), io.StringIO()
    with Progress(4, "search", stream, clock=clock) as progress:
        progress.doing("evaluating")
        assert signs(stream, progress, clock, 20) == [5, 15]
        clock.now += 1
        progress.update(1)
        assert signs(stream, progress, clock, 30) == [15, 25]  # after the usual ten seconds of a line
        progress.pause(True)
        assert signs(stream, progress, clock, 30) == []
        progress.pause(False)
        assert signs(stream, progress, clock, 11) == [10]


def test_the_last_one_that_was_opened_shows_alone(monkeypatch):
    monkeypatch.setattr(module, "TICK_SECONDS", 3600.0)  # beats are called here
    outer, inner = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", outer)
    first, clock = Heartbeat("first", outer, clock := Clock()), clock
    with module.on_top(first):
        assert signs(outer, first, clock, 2) == [1, 2]
        with Progress(4, "search", inner, clock=clock) as progress:
            assert outer.getvalue().endswith("\r\x1b[K")  # its line is gone
            note("a message")
            assert signs(outer, first, clock, 3) == [] and "a message" in inner.getvalue()
            assert signs(inner, progress, clock, 2) == [1, 2]
        doing("writing")
        assert signs(outer, first, clock, 2) == [1, 2] and "writing ... 2 s" in outer.getvalue()
        pause(True)  # a child process shows its progress
        assert signs(outer, first, clock, 2) == []
        pause(False)
        assert signs(outer, first, clock, 2) == [1, 2]


def test_a_terminal_sees_at_once_what_is_loaded(monkeypatch):
    monkeypatch.setattr(module, "TICK_SECONDS", 3600.0)  # the thread that beats may have to wait for a library
    for stream, lines in ((Terminal(), ["loading torch ..."]), (io.StringIO(), [])):
        monkeypatch.setattr(sys, "stderr", stream)
        with heartbeat("loading torch"):
            seen = stream.getvalue()
        assert [line for line in seen.split("\r\x1b[K") if line] == lines
        assert stream.getvalue().endswith("\r\x1b[K") is bool(lines)
