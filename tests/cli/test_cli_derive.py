"""`nas-moreau derive`: rules, budgets, several runs, --write, and one sentence for each mistake."""

import json

import numpy as np
import pytest

from nas_moreau.cli import main
from nas_moreau.runs import load_checkpoint

TINY = """
space: toy
search: {method: darts1, channels: 2, layers: 2, epochs: 1, steps_per_epoch: 2, batch_size: 4, augment: {crop: 1}}
retrain: {channels: 2, layers: 2}
logging: {tensorboard: false}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two searches that differ in their seeds, one at random, and a retraining's folder."""
    place = tmp_path_factory.mktemp("derive")
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3
    np.savez(place / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    (place / "tiny.yaml").write_text(f"{TINY}data: {{name: 'npz:{place / 'data.npz'}'}}")
    for name, words in {"a": (), "b": ("--seed", "1"), "random": ("search.method=random",)}.items():
        main(["search", "--config", str(place / "tiny.yaml"), "--output", str(place / name), *words])
    return place


def call(capsys, *words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_the_runs_own_rule_prints_the_genotype(runs, capsys):
    result = json.loads((runs / "a" / "result.json").read_text())
    code, out, err = call(capsys, "derive", runs / "a")
    assert code == 0 and json.loads(out) == result["genotype"] and "before" not in err
    code, out, _ = call(capsys, "derive", runs / "a", "--json")
    assert code == 0 and json.loads(out) == {key: result[key] for key in ("genotype", "digest", "derived_by")}


@pytest.mark.parametrize("rule", ["edge-normalised", "perturbation", "selection"])
def test_another_rule_shows_before_and_after(rule, runs, capsys):
    result = json.loads((runs / "a" / "result.json").read_text())
    code, out, err = call(capsys, "derive", runs / "a", "--rule", rule, "--json")
    found = json.loads(out)
    assert code == 0 and found["before_rule"]["genotype"] == result["genotype"] and found["derived_by"]["rule"] == rule
    assert result["digest"] in err and found["digest"] in err
    assert json.loads((runs / "a" / "result.json").read_text()) == result
    code, out, _ = call(capsys, "derive", runs / "a", "--rule", rule)
    assert code == 0 and json.loads(out) == found["genotype"]


def test_write_replaces_the_cell_that_is_retrained(runs, capsys):
    before = json.loads((runs / "b" / "result.json").read_text())
    code, _, err = call(capsys, "derive", runs / "b", "--rule", "selection", "--write")
    after = json.loads((runs / "b" / "result.json").read_text())
    assert code == 0 and "written to" in err
    assert after["before_rule"]["digest"] == before["digest"]
    assert json.loads((runs / "b" / "genotype.json").read_text()) == after["genotype"]
    assert call(capsys, "derive", runs / "b", "--rule", "space", "--write")[0] == 0
    assert json.loads((runs / "b" / "result.json").read_text()) == before


def test_a_budget_and_an_ensemble(runs, capsys):
    code, out, err = call(capsys, "derive", runs / "a", "--max-parameters", 700, "--json")
    assert code == 0 and json.loads(out)["derived_by"]["budget"]["parameters"] <= 700 and "chosen exactly" in err
    code, out, err = call(capsys, "derive", runs / "a", runs / "b", "--json")
    assert code == 0 and len(json.loads(out)["derived_by"]["runs"]) == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("a", "--rule", "best"), ["derive.rule", "'best'"]),
        (("a", "--rule", "argmax"), ["'argmax'", "space"]),
        (("a", "--rule", "edge-normalized"), ["'edge-normalised'"]),
        (("a", "--max-macs", "5"), ["5 multiply-adds"]),
        (("a", "--max-parameters", "0"), ["derive.max_parameters"]),
        (("a", "--rule", "perturbation", "--max-macs", "5"), ["perturbation"]),
        (("a", "b", "--write"), ["--write"]),
        (("a", "b", "--rule", "selection"), ["selection"]),
        (("a", "--rule", "selection", "--data", "npz:missing.npz"), ["missing.npz"]),
        (("random",), ["random"]),
        (("nowhere",), ["nowhere"]),
    ],
)
def test_mistakes_cost_one_line_and_change_nothing(words, named, runs, capsys):
    words = [runs / word if word in ("a", "b", "random", "nowhere") else word for word in words]
    before = (runs / "a" / "result.json").read_bytes()
    code, out, err = call(capsys, "derive", *words)
    assert code == 2 and out == "" and all(text in err for text in named) and "Traceback" not in err, err
    assert sum(line.startswith("nas-moreau: ") for line in err.splitlines()) == 1
    assert (runs / "a" / "result.json").read_bytes() == before


def test_a_search_without_checkpoint_or_end(runs, tmp_path, capsys):
    for name in ("config.yaml", "status.json"):
        (tmp_path / name).write_bytes((runs / "a" / name).read_bytes())
    code, _, err = call(capsys, "derive", tmp_path)
    assert code == 2 and "has no checkpoint yet" in err
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_bytes((runs / "a" / "checkpoints" / "last.pt").read_bytes())
    assert load_checkpoint(tmp_path / "checkpoints") is not None
    code, _, err = call(capsys, "derive", tmp_path, "--write")
    assert code == 2 and "is not finished" in err and not (tmp_path / "genotype.json").exists()


def test_settings_of_the_rule_may_be_given(runs, capsys):
    words = ("derive.trained.candidates=2", "derive.trained.steps=2", "derive.trained.batch_size=4")
    for given in ((*words, "--rule", "trained", "--json"), ("--rule", "trained", "--json", *words)):
        code, out, _ = call(capsys, "derive", runs / "a", *given)
        record = json.loads(out)["derived_by"]
        assert code == 0 and [(len(row["candidates"]), row["steps"]) for row in record["rounds"]] == [(2, 2)]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("search.epochs=3",), "search.epochs=3"),
        (("derive.trained.steps=none",), "derive.trained.steps"),
        (("derive.rule=wrong",), "wrong"),
    ],
)
def test_other_settings_are_refused(words, named, runs, capsys):
    code, out, err = call(capsys, "derive", runs / "a", *words)
    assert code == 2 and not out and named in err and "Traceback" not in err


def test_settings_alone_are_no_search(capsys):
    code, _, err = call(capsys, "derive", "derive.trained.steps=2")
    assert code == 2 and "search" in err
