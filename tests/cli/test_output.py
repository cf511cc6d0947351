"""What is printed: whole texts in a file, folded between words on a terminal, and commands that can be copied."""

import sys

from nas_moreau.cli.output import print_next, print_rows, print_text

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


def test_a_command_stands_alone_in_its_line(capsys):
    print_next("Train the cell from scratch", "nas-moreau retrain runs/a")
    assert capsys.readouterr().out.splitlines()[-1].strip() == "nas-moreau retrain runs/a"
