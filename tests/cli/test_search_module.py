"""`nas-moreau search --import mine.py --module NAME`: names, limits, resume, and what is refused."""

import json

import pytest

from nas_moreau.cli.entry import main

MINE = """
import torch
from torch import nn
from nas_moreau import Choice

def make_model():
    act = Choice({"tanh": nn.Tanh(), "relu": nn.ReLU()}, name="act")
    wide = Choice({"wide": nn.Linear(8, 8), "skip": nn.Identity()}, name="wide")
    return nn.Sequential(nn.Linear(2, 8), act, wide, nn.Linear(8, 1))

def loss(net, batch):
    return ((net(batch[0]) - batch[1]) ** 2).mean()

def train():
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    return x, x.abs().sum(1, keepdim=True)

def error(net, batch):
    return -loss(net, batch)

pairs = train()
"""


@pytest.fixture
def search(tmp_path, capsys):
    path = tmp_path / "my_model_of_tests.py"
    path.write_text(MINE)

    def run(*arguments):
        code = main(["search", "--import", str(path), "--module", "make_model", *arguments])
        return code, capsys.readouterr()

    return run


def test_a_search_and_its_resumption(search, tmp_path):
    output = str(tmp_path / "a")
    options = ["--steps", "3", "--output", output, "--json", "seed=4", "search.method=darts1"]
    code, printed = search(*options, "--compare-random", "2", "--metric", "error", "--max-parameters", "50")
    assert code == 0, printed.err
    result = json.loads(printed.out)
    assert result["choices"]["wide"] == "skip" and result["method"] == "darts1" and result["seed"] == 4
    assert result["costs"]["parameters"] <= 50 and len(result["comparison"]["rows"]) == 5 + 2
    assert (tmp_path / "a" / "comparison.json").exists() and (tmp_path / "a" / "report.html").exists()
    code, printed = search(*options, "--metric", "error", "--max-parameters", "50", "--resume")
    assert code == 0 and json.loads(printed.out)["choices"] == result["choices"]


def test_show_prints_and_draws_the_choices(search, tmp_path, capsys):
    output, drawing = tmp_path / "a", tmp_path / "choices.svg"
    assert search("--steps", "3", "--output", str(output))[0] == 0
    assert main(["show", str(output), "--why", "--draw", str(drawing)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("act", "wide", "tanh", "relu", "skip")) and "<svg" in drawing.read_text()
    assert main(["show", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["choices"] == json.loads((output / "choices.json").read_text())["choices"]
    assert set(found["weights"]["act"]) == {"tanh", "relu"}


def test_a_front(search, tmp_path):
    options = ["--pareto", "2", "--cost", "parameters", "--steps", "3", "--output", str(tmp_path / "a"), "--json"]
    code, printed = search(*options)
    assert code == 0, printed.err
    front = json.loads(printed.out)
    assert [point["kind"] for point in front["points"]] == ["front", "front"] and (tmp_path / "a/front.html").exists()
    code, printed = search(*options, "--resume")
    assert code == 0 and json.loads(printed.out) == front
    code, printed = search("--pareto", "2", "--compare-random", "2", "--dry-run", "--output", str(tmp_path / "b"))
    assert code == 0 and json.loads(printed.out)["points"] == 2 and json.loads(printed.out)["compare"]


def test_a_dry_run_says_what_would_be_searched(search, tmp_path):
    code, printed = search("--dry-run", "--train", "pairs", "--batch-size", "8", "--output", str(tmp_path / "a"))
    described = json.loads(printed.out)
    assert code == 0 and described["choices"] == {"act": ["tanh", "relu"], "wide": ["wide", "skip"]}
    assert sum(described["samples"].values()) == 60 and not (tmp_path / "a").exists()


WRONG = {
    "a name that is not there": (["--loss", "los"], "Did you mean 'loss'"),
    "data that are not there": (["--train", "nothing_like_it_here"], "--train"),
    "a preset": (["--preset", "smoke"], "--preset"),
    "a key about cells": (["space=darts"], "'space'"),
    "an unknown key": (["search.mehtod=moreau"], "search.method"),
    "a penalty without a number": (["--penalty", "ms"], "--penalty ms=0.5"),
    "an unknown cost": (["--penalty", "milliseconds=1"], "milliseconds"),
    "other random choices than a front has points": (["--pareto", "2", "--compare-random", "3"], "--compare-random 2"),
    "a limit on a front": (["--pareto", "2", "--max-ms", "5"], "--max-ms"),
    "a cost without a front": (["--cost", "ms"], "--pareto"),
    "an unknown cost of a front": (["--pareto", "2", "--cost", "euros"], "euros"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_refused_with_a_sentence(search, tmp_path, name):
    options, text = WRONG[name]
    code, printed = search("--steps", "2", "--output", str(tmp_path / "a"), *options)
    assert code == 2 and text in printed.err and not (tmp_path / "a" / "config.yaml").exists()


def test_options_of_a_module_need_one(capsys):
    assert main(["search", "--steps", "3"]) == 2 and "--module" in capsys.readouterr().err
    assert main(["search", "--module", "make_model"]) == 2 and "--import" in capsys.readouterr().err
