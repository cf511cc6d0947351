"""What is printed: whole texts in a file, folded between words on a terminal, and commands that can be copied."""

import os
import subprocess
import sys

import pytest

from nas_moreau.cli import main
from nas_moreau.cli.output import print_next, print_records, print_rows, print_table, print_text
from nas_moreau.diagnostics import plan as planning
from nas_moreau.diagnostics.plan import Cost, Limits, Plan, Proposal
from nas_moreau.runs.heartbeat import note
from nas_moreau.text import folded

TEXT = "undecided: no operation is clearly preferred, so that another seed would likely give another cell"


def test_a_terminal_folds_the_last_column_between_words(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    rows = [("cell", "abc"), ("verdict", TEXT)]
    print_rows(rows)
    assert capsys.readouterr().out.splitlines() == ["cell     abc", f"verdict  {TEXT}"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_rows(rows)
    first, *folded = capsys.readouterr().out.splitlines()
    assert first == "cell     abc" and len(folded) > 1 and all(len(line) <= 60 for line in folded)
    assert [line[:9] for line in folded] == ["verdict  "] + [" " * 9] * (len(folded) - 1)
    assert " ".join(line[9:] for line in folded) == TEXT
    # a path stays whole, and a window that is too narrow folds by itself
    print_rows([("report", "/" + "x" * 80)])
    assert "x" * 80 in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "25")
    print_rows(rows)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_terminal_folds_lines_between_words_under_their_indent(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    lines = ["short", f"  {TEXT}", "/" + "x" * 80, TEXT]
    print_text("\n".join(lines))
    assert capsys.readouterr().out.splitlines() == lines
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_text("\n".join(lines))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "short" and "/" + "x" * 80 in printed
    assert all(len(line) <= 60 for line in printed if "x" * 80 not in line)
    assert printed[1].startswith("  u") and printed[2].startswith("    ") and not printed[2].startswith("     ")
    assert " ".join(" ".join(printed).split()) == " ".join(" ".join(lines).split())


def test_a_terminal_that_is_too_narrow_for_a_table_gets_a_list(monkeypatch, capsys):
    columns = ["method", "n", "mean \u00b1 std %", "relative improvement", "search time"]
    rows = [
        ("moreau+beta", "2", "93.86 \u00b1 0.55", "+1.00", "3 min"),
        ("darts1", "8", "92.93 \u00b1 1.18", "+0.00", "2 min"),
    ]
    rows.append(("best cell", "1"))  # a row may end early
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for width in (200, 40):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table(columns, rows, "accuracy")
        printed = capsys.readouterr().out
        assert all(len(line) <= width for line in printed.splitlines())
        assert all(text in printed for text in ("moreau+beta", "93.86 \u00b1 0.55", "search time", "darts1")), printed


def test_a_terminal_folds_notes_but_no_command(monkeypatch, capsys):
    lines = [TEXT, f"go on: nas-moreau run {'x ' * 60}"]
    note("\n".join(lines))
    assert capsys.readouterr().err.splitlines() == lines
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    note("\n".join(lines))
    *printed, command = capsys.readouterr().err.splitlines()
    assert len(printed) > 1 and all(len(line) <= 80 for line in printed) and command == lines[1]
    note(TEXT, fold=False)
    assert capsys.readouterr().err.splitlines() == [TEXT]


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-", ">&-"])
def test_a_process_without_standard_streams_works(closed, tmp_path):
    (tmp_path / "runs").mkdir()
    command = f"{sys.executable} -m nas_moreau list runs --output runs --json --quiet {closed}; echo $?"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
    assert done.stdout.splitlines()[-1] == "0" and not done.stderr


@pytest.mark.parametrize("installed", [False, True])
def test_a_removed_working_folder_is_a_sentence(tmp_path, installed):
    start = "-c 'from nas_moreau.cli import main; raise SystemExit(main())'" if installed else "-m nas_moreau"
    command = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} {start} list presets"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == 2 and "Traceback" not in done.stderr and "folder" in done.stderr


def test_a_command_stands_alone_in_its_line(capsys):
    print_next("Train the cell from scratch", "nas-moreau retrain runs/a")
    assert capsys.readouterr().out.splitlines()[-1].strip() == "nas-moreau retrain runs/a"


def test_a_terminal_too_narrow_for_a_table_gets_lists(monkeypatch, capsys):
    columns, rows = ["run", "state", "age"], [["checkpoints/first", "finished", "3 h ago"]]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    print_records(columns, rows)
    assert len(capsys.readouterr().out.splitlines()) == 2
    monkeypatch.setenv("COLUMNS", "30")
    print_records(columns, rows)
    assert capsys.readouterr().out.split() == ["checkpoints/first", "state", "finished", "age", "3", "h", "ago"]


@pytest.mark.parametrize(
    ("hours", "fits", "said"),
    [(None, True, "3.0 h"), ("4", True, "it fits"), ("2", True, "a=1"), ("2", False, "smaller")],
)
def test_a_plan_ends_with_its_verdict(hours, fits, said, monkeypatch, capsys):
    cost = Cost(10**9, 1.5)
    limits = Limits(None, hours and float(hours))
    proposals = [Proposal("both", ["a=1"], 10**9, 1.0, fits)] if hours == "2" else []
    monkeypatch.setattr(planning, "plan", lambda *given: Plan(cost, cost, proposals, limits))
    assert main(["plan", "--preset", "smoke", *(["--hours", hours] if hours else [])]) == 0
    assert said in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("width", range(25, 70))
def test_a_number_keeps_its_per_cent_sign_in_any_width(width):
    text = "epoch 1/2  architecture loss 2.286  held-out accuracy 11.75 %  idle edges 0 %  margin 0.003"
    lines = folded(text, width).split("\n")
    assert not any(line.strip().startswith("%") for line in lines) and max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
