"""The command line as a user meets it: exit codes, one sentence for each mistake, JSON on standard output alone."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nas_moreau.cli import main
from nas_moreau.cli.entry import parse_arguments
from nas_moreau.cli.listing import KINDS
from nas_moreau.cli.verbs import VERBS, option, verb
from nas_moreau.training import signals as stopping

TINY = """
space: toy
search: {channels: 2, layers: 3, epochs: 1, steps_per_epoch: 2, batch_size: 4, image_size: 8, augment: {crop: 1}}
retrain: {channels: 2, layers: 3, epochs: 1, steps_per_epoch: 2, batch_size: 8, auxiliary: false, drop_path: 0.0}
"""


@pytest.fixture
def npz(tmp_path):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    path = tmp_path / "data.npz"
    labels = np.arange(40) % 2
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return path


@pytest.fixture
def tiny(tmp_path, npz):
    path = tmp_path / "tiny.yaml"
    path.write_text(f"{TINY}data: {{name: 'npz:{npz}'}}")
    return path


def call(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
def test_run_evaluate_derive_report_show_and_list(tiny, tmp_path, capsys):
    run = tmp_path / "out" / "first"
    code, out, err = call(capsys, "run", "--config", tiny, "--output", run, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["search"]["digest"] == result["retrain"]["digest"]
    assert 0 <= result["retrain"]["test_accuracy"] <= 1
    for name in ("search/metrics.csv", "search/checkpoints/last.pt", "retrain/checkpoints/best.pt", "result.json"):
        assert (run / name).exists(), name
    assert "<html" in (run / "report.html").read_text().lower()
    code, out, _ = call(capsys, "evaluate", run, "--json")
    assert code == 0
    found = json.loads(out)
    assert found.keys() == {"split", "samples", "accuracy", "loss"} and found["samples"] == 40
    assert found["split"] == "test" and found["accuracy"] == result["retrain"]["test_accuracy"]
    code, out, _ = call(capsys, "evaluate", run)
    assert code == 0 and " %" in out and max(map(len, out.split())) < 10  # a person reads it
    code, out, _ = call(capsys, "evaluate", run / "search", "--json")
    assert code == 0 and json.loads(out)["accuracy"] == result["search"]["held_out_accuracy"]
    code, out, _ = call(capsys, "derive", run)
    assert code == 0 and json.loads(out) == result["search"]["genotype"]
    assert call(capsys, "report", run)[0] == 0
    code, out, err = call(capsys, "export", run, "--format", "python", "--json")
    exported = run / "retrain" / "export-python"
    assert code == 0 and json.loads(out)["output"] == str(exported) and (exported / "model.py").exists(), err
    Image.fromarray(np.zeros((9, 7, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    for source in (run, run / "retrain", exported):
        code, out, err = call(capsys, "predict", source, tmp_path / "photo.png", tmp_path / "none.png", "--json")
        # a file that cannot be read shows in the exit code
        assert code == 1 and json.loads(out)["images"][0]["class"] in ("0", "1") and "none.png: No such" in err
    code, out, _ = call(capsys, "predict", exported, tmp_path / "photo.png")
    assert code == 0 and "photo" in out and "probability" in out and "..." not in out
    code, out, _ = call(capsys, "show", run)
    assert code == 0 and result["search"]["digest"] in out
    code, out, _ = call(capsys, "list", "runs", "--output", tmp_path / "out")
    assert code == 0 and "first" in out and "finished" in out
    # a finished run is not done again
    code, out, _ = call(capsys, "run", "--output", run, "--resume", "--json")
    assert code == 0 and json.loads(out) == result


def test_retrain_takes_a_name_a_file_a_text_and_a_run(tiny, tmp_path, capsys):
    from nas_moreau.architecture.spaces.zoo import published_cell

    cell = tmp_path / "cell.json"
    cell.write_text(published_cell("GDAS_V1").to_json())
    digests = set()
    for number, genotype in enumerate(("GDAS_V1", cell, published_cell("GDAS_V1").to_printed())):
        code, out, err = call(
            capsys, "retrain", genotype, "--config", tiny, "--output", tmp_path / str(number), "--json"
        )
        assert code == 0, err
        digests.add(json.loads(out)["digest"])
    assert digests == {published_cell("GDAS_V1").digest()}
    code, out, err = call(capsys, "retrain", tmp_path / "0", "seed=5", "--output", tmp_path / "again", "--json")
    assert code == 0 and json.loads(out)["seed"] == 5, err


def test_dry_run_says_the_sizes_and_writes_nothing(tiny, tmp_path, capsys):
    code, out, _ = call(capsys, "run", "--config", tiny, "--output", tmp_path / "none", "--dry-run")
    assert code == 0 and json.loads(out)["data"]["train"] == 40
    assert not (tmp_path / "none").exists()


def test_your_own_operation_and_space(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "from nas_moreau.architecture import register_operation\n"
        "@register_operation('cli_test_conv')\n"
        "def conv(channels, stride, norm):\n"
        "    return nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, stride, 1, bias=False), norm(channels))\n"
    )
    space = tmp_path / "space.yaml"
    space.write_text(
        "name: mine\nskeleton: darts\nnodes: 2\noperations: [none, skip_connect, cli_test_conv]\n"
        "derivation: {rule: top_edges, edges_per_node: 2, exclude: [none]}\n"
    )
    code, _, err = call(capsys, "check", space)
    assert code == 2 and "cli_test_conv" in err
    words = (
        "--import",
        tmp_path / "mine.py",
        "--config",
        tiny,
        "--output",
        tmp_path / "own",
        "--json",
        f"space={space}",
    )
    code, out, err = call(capsys, "run", *words)
    assert code == 0, err
    assert json.loads(out)["search"]["space"] == "mine"


# (command, what the sentence must name: the wrong value, its nearest neighbour, or the option that cures it)
BAD = [
    (["run", "--preset", "smokey"], ["'smokey'", "'smoke'"]),
    (["run", "--preset", "smoke", "search.epoch=1"], ["search.epoch", "search.epochs"]),
    (["run", "--preset", "smoke", "--config", "a.yaml"], ["--preset", "--config"]),
    (["run", "--preset", "smoke", "--data", "npz:missing.npz"], ["missing.npz"]),
    (["run", "--preset", "smoke", "space=darst"], ["'darst'", "'darts'"]),
    (["search", "--preset", "smoke", "search.method=morau"], ["'morau'", "'moreau'"]),
    (["search", "--preset", "smoke", "--device", "nonsense"], ["nonsense"]),
    (["search", "--preset", "smoke", "search.image_size=4"], ["small"]),
    (["search", "--resume"], ["--resume", "--output"]),
    (["retrain", "DARTS_V3", "--preset", "smoke"], ["DARTS_V3", "'DARTS_V"]),
    (["evaluate", "nowhere"], ["nowhere"]),
    (["report", "nowhere"], ["nowhere"]),
    (["show", "nothing.json"], ["nothing.json"]),
    (["show", "DARTS_V2", "--draw", "cell.gif"], ["cell.gif", ".svg"]),
    (["check", "nothing.yaml"], ["nothing.yaml"]),
    (["export", "DARTS_V2", "--format", "onnx"], ["weights", "--untrained"]),
    (["export", "nowhere", "--format", "python"], ["'nowhere'"]),
    (["predict", "nowhere", "a.png"], ["nowhere"]),
    (["plan", "--preset", "smoke", "--memory", "11XB"], ["11XB"]),
    (["plan", "--preset", "smoke", "--hours", "-1"], ["--hours", "-1"]),
    (["watch", ".", "--port", "70000"], ["70000"]),
    (["compare", "--preset", "smoke", "--methods", "darts1", "--seed", "1"], ["--seeds"]),
    (["compare", "--preset", "smoke", "--methods", "darts1", "search.method=darts2"], ["search.method=darts2"]),
    (["runn"], ["'runn'", "'run'"]),
    (["quit"], ["'quit'", "search", "doctor"]),
    (["run", "--nonsense"], ["--nonsense"]),
    (["run", "--outputs", "a"], ["'--outputs'", "'--output'"]),
    (["run", "--on-nonfinite", "ignore"], ["ignore", "rollback"]),
    (["doctor", "search.epochs=1"], ["search.epochs=1", "doctor"]),
    (["list", "everything"], ["'everything'", "spaces"]),
    (["list", "data"], ["'data'"]),
    (["list", "cells", "--import", "no_such_module"], ["no_such_module"]),
    (["solve", "sin"], ["'sin'", "'sine'"]),
    ([], ["verb"]),
]


@pytest.mark.parametrize("words, named", BAD, ids=[" ".join(words) for words, _ in BAD])
def test_mistakes_exit_with_2_and_one_line(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words)
    assert code == 2 and out == ""
    assert all(text.lower() in err.lower() for text in named) and "Traceback" not in err, err
    lines = [line for line in err.splitlines() if not line.startswith("run folder")]
    assert len(lines) == 1 and lines[0].startswith("nas-moreau: ")
    assert list(tmp_path.iterdir()) == []


def test_corrupt_npz_labels_out_of_range_and_a_genotype_of_another_space(tiny, tmp_path, capsys):
    broken = tmp_path / "broken.npz"
    broken.write_bytes((tmp_path / "data.npz").read_bytes()[:500])
    code, _, err = call(capsys, "run", "--config", tiny, "--data", f"npz:{broken}", "--output", tmp_path / "o")
    assert code == 2 and "broken.npz" in err and "Traceback" not in err
    with np.load(tmp_path / "data.npz") as arrays:
        content = dict(arrays)
    np.savez(tmp_path / "labels.npz", **content | {"y_train": content["y_train"] - 5})
    code, _, err = call(
        capsys, "run", "--config", tiny, "--data", f"npz:{tmp_path / 'labels.npz'}", "--output", tmp_path / "o"
    )
    assert code == 2 and "label" in err
    code, _, err = call(capsys, "retrain", '{"version": 1, "space": "x", "cells": {}}', "--config", tiny)
    assert code == 2 and "cells" in err
    assert not (tmp_path / "o").exists()


def test_an_output_that_holds_a_run_or_cannot_be_written_is_refused(tiny, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    code, _, err = call(capsys, "search", "--config", tiny, "--output", tmp_path / "full")
    assert code == 2 and "already holds" in err and (tmp_path / "full" / "mine.txt").read_text() == "precious"
    (tmp_path / "file").write_text("")
    code, _, err = call(capsys, "search", "--config", tiny, "--output", tmp_path / "file" / "sub")
    assert code == 2 and "cannot be written" in err


EXITS = {
    stopping.NonFinite("F is NaN."): 3,
    stopping.Interrupted(2, "there"): 130,
    stopping.Interrupted(15, "there"): 143,
    OSError(28, "No space left on device"): 1,
    RuntimeError("out of memory"): 1,
    KeyboardInterrupt(): 130,
}


@pytest.mark.parametrize("error, expected", EXITS.items())
def test_exit_codes(error, expected, tiny, tmp_path, capsys, monkeypatch):
    from nas_moreau.search import stage as search

    def fail(*args, **kwargs):
        (tmp_path / "a b").mkdir()
        raise error

    monkeypatch.setattr(search, "search", fail)
    code, _, err = call(capsys, "search", "--config", tiny, "--output", tmp_path / "a b", "seed=3")
    assert code == expected and "Traceback" not in err
    if isinstance(error, stopping.Interrupted):
        assert f"nas-moreau search --config {tiny} --output '{tmp_path}/a b' seed=3 --resume" in err


@pytest.mark.parametrize("begun", [True, False])
def test_a_signal_while_the_arguments_are_parsed_prints_how_to_resume(begun, tiny, tmp_path, capsys, monkeypatch):
    from nas_moreau.cli import entry as cli

    original, calls = cli.parse_arguments, []

    def parse(arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise stopping.StoppedImmediately(15)
        return original(arguments)

    monkeypatch.setattr(cli, "parse_arguments", parse)
    if begun:
        (tmp_path / "run").mkdir()
    code, _, err = call(capsys, "search", "--config", tiny, "--output", tmp_path / "run")
    assert code == 143
    assert (f"nas-moreau search --config {tiny} --output {tmp_path}/run --resume" in err) is begun


@pytest.mark.parametrize("what", KINDS)
def test_lists(what, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "list", what)
    assert code == 0 and out.strip()
    code, out, _ = call(capsys, "list", what, "--json")
    assert code == 0 and isinstance(json.loads(out), list)


@pytest.mark.parametrize(
    "name, match", [("darts", "1,076,746,950"), ("cifar10", "with all defaults"), ("NASNet", "sep_conv_7x7")]
)
def test_show(name, match, capsys):
    code, out, _ = call(capsys, "show", name)
    assert code == 0 and match in out


def test_every_verb_has_help_with_examples(capsys):
    contract = "run search derive retrain evaluate report export compare solve bench plan watch predict"
    assert {*contract.split(), "check-hypergradient", "list", "show", "check", "doctor", "config"} <= set(VERBS)
    for name, row in VERBS.items():
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        text = capsys.readouterr().out
        assert all(f"nas-moreau {example}" in text for example in row.examples)
        assert all(option.names[-1] in text or option.settings.get("metavar", "") in text for option in row.options)
        for example in row.examples:
            words = shlex.split(example.partition(" > ")[0], comments=True)
            assert parse_arguments(words).verb == words[0]


def test_the_parsed_options_are_never_changed(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["search", "--config", str(tiny)], ["export", "DARTS_V2", "--untrained", "--format", "safetensors"]):
        args = parse_arguments(words)
        before = repr(args)
        args.function(args)
        assert repr(args) == before


def test_a_verb_is_added_by_one_registration(capsys):
    @verb("greet", "print a greeting", examples=["greet you"], options=[option("name"), option("--loud")])
    def greet(args):
        return {"greeting": f"hello {args.name}"}

    try:
        code, out, _ = call(capsys, "greet", "you", "--json")
        assert code == 0 and json.loads(out) == {"greeting": "hello you"}
        assert greet.__name__ == "greet"
    finally:
        del VERBS["greet"]


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "run --help",
        "list spaces",
        "list cells",
        "list presets",
        "list sources",
        "show darts",
        "config --help",
    ],
)
def test_help_and_lists_load_nothing_heavy(words):
    heavy = ["torch", "timm", "tensorboard", "matplotlib", *(["yaml", "pydantic"] if "--help" in words else [])]
    code = f"""
import sys
from nas_moreau.cli import main
try:
    assert main({words.split()}) == 0
except SystemExit as end:  # argparse's help
    assert not end.code
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_and_sigterm_are_real(tiny, tmp_path):
    """A real process: SIGTERM finishes the step, saves, says how to go on, exits with 143; resumed, it ends well."""
    import signal
    import time

    words = ["search", "--config", str(tiny), "--output", str(tmp_path / "run")]
    command = [sys.executable, "-m", "nas_moreau", *words, "search.steps_per_epoch=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((tmp_path / "run").glob("tensorboard/*")):
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "--resume" in err and (tmp_path / "run" / "checkpoints" / "last.pt").exists()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted"
