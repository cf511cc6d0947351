"""metrics.csv, alphas.csv and TensorBoard events, also after a resume."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from nas_moreau.architecture.spaces.alpha_table import AlphaTable, EdgeWeights
from nas_moreau.drawing.contact_sheet import contact_sheet
from nas_moreau.errors import InputError
from nas_moreau.runs.monitor import Monitor
from nas_moreau.runs.progress import Progress
from nas_moreau.runs.tables import EpochTable, read_table


def row(epoch: int) -> dict:
    return {
        "wall_seconds": 0.5,
        "loss": torch.tensor(0.1 * epoch, dtype=torch.float64, device="cpu"),
        "epoch": epoch,
        "note": None,
        "k": epoch,
    }


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_that_nobody_reads_ends_no_run(terminal):
    class Gone(io.StringIO):
        gone = False

        def isatty(self):
            return terminal

        def write(self, text):
            if self.gone:
                raise BrokenPipeError
            return super().write(text)

    stream = Gone()
    with Progress(3, "search", stream) as progress:
        progress.update(1)
        stream.gone = True
        progress.line("epoch 1/1")
        progress.update(3, loss=1.0)
        progress.cell("cell")
    assert "epoch 1/1" not in stream.getvalue()


def test_rows_are_exact_and_in_order(tmp_path):
    with Monitor(tmp_path) as monitor:
        monitor.epoch(row(0))
        monitor.epoch(row(3))
    assert (tmp_path / "metrics.csv").read_bytes() == (
        b"epoch,loss,note,k,wall_seconds\n0,0.0,,0,0.5\n3,0.30000000000000004,,3,0.5\n"
    )
    assert read_table(tmp_path / "metrics.csv")[1] == {
        "epoch": "3",
        "loss": "0.30000000000000004",
        "note": "",
        "k": "3",
        "wall_seconds": "0.5",
    }


def test_other_columns_are_refused(tmp_path):
    with Monitor(tmp_path) as monitor:
        monitor.epoch(row(0))
        with pytest.raises(InputError, match=r"k.*extra"):
            monitor.epoch({"epoch": 1, "loss": 1.0, "note": 1, "extra": 1, "wall_seconds": 1})


def test_a_resumed_table_has_the_bytes_of_an_uninterrupted_one(tmp_path):
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    table = EpochTable(whole)
    for epoch in range(5):
        table.append([row(epoch)])
    table = EpochTable(cut)
    for epoch in range(4):
        table.append([row(epoch)])
    with open(cut, "a") as file:
        file.write("4,0.")  # torn by a kill
    table = EpochTable(cut, resume_from_epoch=2)
    assert [r["epoch"] for r in read_table(cut)] == ["0", "1"]
    for epoch in range(2, 5):
        table.append([row(epoch)])
    assert cut.read_bytes() == whole.read_bytes()
    table = EpochTable(cut)  # from the beginning
    for epoch in range(5):
        table.append([row(epoch)])
    assert cut.read_bytes() == whole.read_bytes()


def test_alphas_are_long_rows(tmp_path):
    with Monitor(tmp_path) as monitor:
        weights = [{"skip_connect": 0.25, "sep_conv_3x3": 0.75}, {"skip_connect": 0.5, "sep_conv_3x3": 0.5}]
        rows = tuple(EdgeWeights(edge, found) for edge, found in zip([(0, 2), (1, 2)], weights))
        monitor.alphas(0, AlphaTable({"normal": rows}))
    assert (tmp_path / "alphas.csv").read_text() == (
        "epoch,cell,edge,operation,weight\n0,normal,0-2,skip_connect,0.25\n0,normal,0-2,sep_conv_3x3,0.75\n"
        "0,normal,1-2,skip_connect,0.5\n0,normal,1-2,sep_conv_3x3,0.5\n"
    )


def events(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(path / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    with Monitor(tmp_path) as monitor:
        monitor.epoch(row(0))
        for step in range(6):
            monitor.scalars({"loss": torch.tensor(float(step), device="cpu"), "lr": 0.5}, step)
    with Monitor(tmp_path, resume_from_epoch=1, step=3) as monitor:
        for step in range(3, 8):
            monitor.scalars({"loss": 100.0 + step, "lr": 0.5}, step)
    found = events(tmp_path)
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 103),
        (4, 104),
        (5, 105),
        (6, 106),
        (7, 107),
    ]
    assert len(found.Scalars("lr")) == 8


def test_pictures_texts_and_hparams_arrive(tmp_path):
    png = contact_sheet(torch.zeros(1, 3, 4, 4, dtype=torch.uint8, device="cpu"), ["a"])
    with Monitor(tmp_path) as monitor:
        monitor.image("cell", torch.zeros(4, 5, 3, dtype=torch.uint8, device="cpu"), 2)
        monitor.text("note", "hello", 1)
        monitor.image("sheet", png, 2)
        monitor.hparams({"betas": [0.5, 0.9], "seed": 1}, {"test_accuracy": 0.75}, step=9, first=["seed"])
        monitor.layout({"Search": {"Losses": ["Multiline", ["loss/upper", "loss/lower"]]}})
    found = events(tmp_path)
    assert (found.Images("cell")[0].height, found.Images("cell")[0].width) == (4, 5)
    assert [(e.step, e.value) for e in found.Scalars("test_accuracy")] == [(9, 0.75)]
    assert "note/text_summary" in found.Tags()["tensors"]
    assert found.Images("sheet")[0].encoded_image_string == png
    about = found.summary_metadata["_hparams_/experiment"].plugin_data
    assert about.plugin_name == "hparams"
    columns = HParamsPluginData.FromString(about.content).experiment.hparam_infos
    assert [column.name for column in columns if column.differs] == ["seed"] and len(columns) == 2
    assert [p.name for p in (tmp_path / "tensorboard").iterdir() if p.is_dir()] == []


def test_without_tensorboard_the_tables_are_written_all_the_same(tmp_path):
    with Monitor(tmp_path, tensorboard=False) as monitor:
        monitor.scalars({"a": 1.0}, 0)
        monitor.image("cell", None, 0)
        monitor.text("a", "b")
        monitor.hparams({}, {})
        monitor.layout({})
        monitor.epoch(row(0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["files.json", "metrics.csv"]


def test_importing_the_package_loads_no_tensorboard_and_no_matplotlib():
    code = (
        "import sys, nas_moreau, nas_moreau.runs.monitor, nas_moreau.runs.progress; "
        "sys.exit(sum(name in sys.modules for name in ('tensorboard', 'matplotlib', 'timm', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_plain_lines_come_after_five_seconds_then_every_ten_and_tell_the_time_left():
    stream, clock = io.StringIO(), Clock()
    with Progress(100, "search", stream, start=40, clock=clock) as progress:
        for step in range(41, 101):
            clock.now += 1.0
            progress.update(step, F=2.30259, c=1)
            if step == 60:
                progress.line("epoch 0 done")
    assert stream.getvalue().splitlines() == [
        "search 45/100   45 %  F 2.303  c 1  0:00:55 left",
        "search 55/100   55 %  F 2.303  c 1  0:00:45 left",
        "epoch 0 done",
        "search 65/100   65 %  F 2.303  c 1  0:00:35 left",
        "search 75/100   75 %  F 2.303  c 1  0:00:25 left",
        "search 85/100   85 %  F 2.303  c 1  0:00:15 left",
        "search 95/100   95 %  F 2.303  c 1  0:00:05 left",
        "search 100/100  100 %  F 2.303  c 1  0:00:00 left",
    ]


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    # the first step takes long, and does not count
    stream, clock = Terminal(), Clock()
    with Progress(7200, "search", stream, clock=clock, epoch_steps=50) as progress:
        clock.now = 41.0
        progress.update(1, F=0.5)
        progress.line("[epoch] 0")  # brackets are text, not markup
        progress.cell("3 skip")
        clock.now = 100.0
        progress.update(60, F=0.25, held_out="51 %")
    text = stream.getvalue()
    assert "epoch 2/144" in text and "10/50" in text and "held out 51 %" in text and "3 skip" in text
    assert "1/7200" in text and "F 0.5" in text and "? left" in text and "[epoch] 0" in text
    assert "1:59:00 left" in text
