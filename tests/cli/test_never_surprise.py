"""Commands as people mistype them, files with names as people have them: the right cure, nothing lost, no surprise."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nas_moreau.architecture import load_genotype
from nas_moreau.cli import main
from nas_moreau.config import load_config
from nas_moreau.data import load_data
from nas_moreau.data.sources import source_of
from nas_moreau.errors import InputError
from nas_moreau.plugins import WITHIN, import_modules
from nas_moreau.report import run as report
from nas_moreau.runs.tables import read_table
from nas_moreau.text import name_text, printable, spreadsheet_text
from nas_moreau.yaml_files import parse_yaml

TINY = """
space: toy
search: {channels: 2, layers: 3, epochs: 1, steps_per_epoch: 2, batch_size: 4, augment: {crop: 1}}
retrain: {channels: 2, layers: 3, epochs: 1, steps_per_epoch: 2, batch_size: 4, auxiliary: false, drop_path: 0.0}
logging: {tensorboard: false}
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """A function that runs a command in an empty folder and returns exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)

    def run(*words):
        capfd.readouterr()
        code = main([os.fspath(word) for word in words])
        return code, *capfd.readouterr()

    return run


def photos(root, classes=("cat", "dog"), count=20):
    draw = np.random.default_rng(0)
    for name in classes:
        folder = os.path.join(os.fsencode(root), b"train", os.fsencode(name))
        os.makedirs(folder)
        for index in range(count):
            image = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            image.save(os.fsdecode(os.path.join(folder, b"%03d.png" % index)))
    return root


# (command, what the sentence must name)
MISTYPED = [
    (["run"], ["--preset smoke", "--config"]),
    (["run", "--data", "shapes"], ["--preset smoke"]),
    (["search", "search.channels=4"], ["--preset smoke", "search.epochs="]),
    (["retrain", "DARTS_V2", "search.epochs=1"], ["--preset smoke", "retrain.epochs="]),
    (["compare", "--methods", "darts1"], ["--preset smoke"]),
    (["search", "--output", "typo", "--resume"], ["typo", "--preset"]),
    (["run", "--preset", "smoke", "seed=1e3"], ["'seed'", "1000", "integer"]),
    (["run", "--preset", "smoke", "seed=true"], ["'seed'", "True", "integer"]),
    (["run", "--preset", "smoke", "search.epochs=3.0"], ["'search.epochs'", "3.0", "integer"]),
    (["run", "--preset", "smoke", "search.epochs=010"], ["010", "plain"]),
    (["run", "--preset", "smoke", "search.epochs=1:30"], ["1:30", "plain"]),
    (["run", "--preset", "smoke", "search.epochs=0x10"], ["0x10", "plain"]),
    (["run", "--preset", "smoke", "search.epochs=1_0"], ["1_0", "plain"]),
    (["run", "--preset", "smoke", "search.epochs=many"], ["'search.epochs'", "many", "integer in [1, "]),
    (["run", "--preset", "smoke", "search.epochs=0"], ["'search.epochs'", "integer in [1, "]),
    (["run", "--preset", "smoke", "data=folder:photos"], ["section", "data.name"]),
    (["run", "--preset", "smoke", "search=3"], ["section", "search.method"]),
    (["run", "--preset", "smoke", "batch_size=8"], ["search.batch_size", "retrain.batch_size"]),
    (["run", "--preset", "smoke", "epochs=3"], ["search.epochs", "retrain.epochs"]),
    (["run", "--preset", "smoke", "search.epoch=3"], ["search.epochs"]),
    (["run", "--preset", "smoke", "search.layers=1000000000"], ["'search.layers'", "1000"]),
    (["run", "--preset", "smoke", "search.channels=100000000"], ["'search.channels'", "16384"]),
    (["retrain", "DARTS_V2", "--preset", "smoke", "retrain.channels=100000000"], ["'retrain.channels'", "16384"]),
    (["list", "runs", "."], ["--output ."]),
    (["config", "search.gama"], ["search.moreau.gamma"]),
    (["run", "--preset", "smoke", "search.lr=1"], ["search.weights.lr", "search.alphas.lr"]),
    (["run", "--preset", "smoke", "learning_rate=1"], ["search.weights.lr", "retrain.lr"]),
    (["run", "--preset", "smoke", "--epochs", "3"], ["search.epochs=", "retrain.epochs="]),
    (["run", "--preset", "smoke", "--batch-size=8"], ["search.batch_size=", "retrain.batch_size="]),
    (["run", "--preset", "smoke", "--search.epochs", "8"], ["search.epochs="]),
    (["run", "smoke"], ["--preset smoke"]),
    (["run", "--preset", "smoke", "--data", "mnsit"], ["mnist"]),
    (["run", "--preset", "smoke", "--device", "gpu"], ["gpu", "--device auto"]),
    (["--output", "x", "run"], ["--output", "VERB"]),
    (["-q", "plan"], ["-q", "VERB"]),
    (["serch"], ["'serch'", "search"]),
    (["train"], ["retrain", "run"]),
    (["help"], ["--help"]),
    (["eval"], ["evaluate"]),
    (["presets"], ["list presets"]),
    (["smoke"], ["run --preset smoke"]),
    (["mine.yaml"], ["--config mine.yaml"]),
    (["run", "smoke", "--data", "shapes"], ["'smoke'", "--preset smoke"]),
    (["run", "preset=smoke"], ["--preset smoke"]),
    (["run", "--preset", "smoke", "search.epochs", "3"], ["search.epochs=VALUE"]),
    (["run", "--preset", "smoke", "search.epochs:3"], ["search.epochs=3"]),
    (["run", "--preset", "smoke", "search.lr", "3"], ["search.weights.lr=VALUE"]),
    (["run", "--preset", "smoke", "tiny.yaml"], ["--config tiny.yaml"]),
    (["run", "--preset", "smoke", "--data", "folder", "."], ["--data folder:."]),
    (["run", "--preset", "smoke", "--gpu", "0"], ["--device auto"]),
    (["run", "--preset", "smoke", "--dataset", "shapes"], ["--data"]),
    (["run", "--preset", "smoke", "-o", "there"], ["--output DIR"]),
    (["run", "--preset", "smoke", "--device", "mps"], ["'mps'", "--device auto"]),
    (["run", "--preset", "smoke", "--seed", "1.5"], ["--seed", "1.5", "an integer"]),
    (["solve", "sine", "--n", "1e6"], ["--n", "1e6", "--n 1000000"]),
    (["export", "run", "--format", "ONNX"], ["'ONNX'", "'onnx'"]),
    (["retrain"], ["GENOTYPE-OR-RUN", "retrain DARTS_V2"]),
    (["retrain", "."], ["without a genotype"]),
    (["list", "datasets"], ["list sources"]),
    (["list", "models"], ["list cells"]),
    (["plan", "--preset", "smoke", "--memory", "8"], ["8 bytes", "8GB"]),
    (["evaluate", "nowhere"], ["does not exist"]),
    (["evaluate", ""], ["RUN", "empty"]),
    (["derive", "tiny.yaml", ""], ["RUN", "empty"]),
    (["run", "--preset", "smoke", "--output", ""], ["--output", "empty"]),
    (["run", "--preset", "smoke", "--import="], ["--import", "empty"]),
    (["list", "runs", "--output", "runs"], ["runs does not exist"]),
    (["list", "runs", "--output", "tiny.yaml"], ["tiny.yaml is not a folder"]),
    (["bench", "--threads", "0"], ["threads", "1 to"]),
    (["bench", "--threads", "1000000"], ["threads", "1 to"]),
    (["bench", "--rounds", "-1"], ["rounds", "1 to"]),
    (["bench", "--device", "gpu"], ["'gpu'"]),
    (["run", "--preset", "smoke", "performance.threads=1000000"], ["'performance.threads'", "1024"]),
    (["run", "--preset", "smoke", "search.weights.lr=1e39"], ["'search.weights.lr'", "1e+39", "3.4e+38"]),
    (["run", "--preset", "smoke", "--device", "meta"], ["'meta'", "--device auto"]),
    (["list", "cells", "--import", "missing.py"], ["missing.py", "no such file"]),
    (["check", "cifar10"], ["--download"]),
]


@pytest.mark.parametrize("words, named", MISTYPED, ids=[" ".join(words) for words, _ in MISTYPED])
def test_mistyped_commands(call, tmp_path, words, named):
    code, out, err = call(*words)
    assert code == 2 and not out and all(text in err for text in named), err
    lines = [line for line in err.splitlines() if " ... " not in line]  # signs of life on a busy machine
    assert len(lines) == 1 and "run folder" not in err and len(lines[0]) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize("verb", ["run", "search", "retrain", "compare"])
def test_a_dry_run_refuses_the_folders_that_the_run_refuses(call, tmp_path, verb):
    words = [verb, *(["DARTS_V2"] if verb == "retrain" else []), "--config", "tiny.yaml", "--dry-run"]
    words += ["--methods", "darts1"] if verb == "compare" else []
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    for output in ("photos", "file", "file/below"):
        code, out, err = call(*words, "--output", tmp_path / output)
        assert code == 2 and not out and output in err, err
    (tmp_path / "empty").mkdir()
    for output in ("empty", "new", "new/below"):
        assert call(*words, "--output", tmp_path / output)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "photos", "tiny.yaml"]


def test_a_module_that_ends_the_program_is_an_error(call, tmp_path):
    (tmp_path / "ending.py").write_text("import sys\nsys.exit(0)")
    code, out, err = call("list", "presets", "--import", "ending.py")
    assert code == 2 and not out and "ending.py" in err


@pytest.mark.parametrize("words", [["run", "--preset", "smoke", "--device", "gpu"], ["check", "cifar10"]])
def test_no_sentence_is_one_of_the_libraries(call, words):
    err = call(*words)[2]
    assert not any(text in err for text in ("mkldnn", "privateuseone", "aten::", "download=True"))


@pytest.mark.parametrize("verb", ["evaluate", "report", "derive"])
def test_a_mistyped_run_names_the_near_one_and_those_inside(call, tmp_path, verb):
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "status.json").write_text("{}")
    assert "runs/first" in call(verb, "runs/frist")[2]
    assert "runs/first, runs/second" in call(verb, "runs")[2]


def test_resume_of_a_mistyped_folder_names_the_near_run(call, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "status.json").write_text("{}")
    assert "first" in call("search", "--output", tmp_path / "frist", "--resume")[2]
    assert not (tmp_path / "frist").exists()


def test_numbers_and_text_in_yaml():
    assert parse_yaml("a: 1e-3\nb: 3e+4\nc: 1.5e2\nd: .5\ne: -0.0\nf: 0\ng: .inf", "a test", "") == {
        "a": 1e-3,
        "b": 3e4,
        "c": 150.0,
        "d": 0.5,
        "e": 0.0,
        "f": 0,
        "g": float("inf"),
    }
    assert load_config(overrides=["search.alphas.lr=3e-4"]).search.alphas.lr == 3e-4
    assert load_config(overrides=["retrain.lr=1"]).retrain.lr == 1
    for text in ("010", "0o10", "0x1F", "1_000", "1:30", "0b11", "1_0.5", "190:20:30.15"):
        if isinstance(parse_yaml(f"'{text}'", "a test", ""), str) and text != "0o10":
            with pytest.raises(InputError, match=text):
                parse_yaml(f"a: {text}", "a test", "")
    with pytest.raises(InputError, match=r"tab.*line 2"):
        parse_yaml("search:\n\tepochs: 3", "a test", "")


def test_too_few_images_name_the_key_and_no_folder_is_announced(call, tmp_path):
    photos(tmp_path / "photos")
    words = ["search", "--config", "tiny.yaml", "--data", f"folder:{tmp_path / 'photos'}", "--output", "run"]
    code, _, err = call(*words, "search.batch_size=32")
    assert code == 2 and "search.batch_size=" in err and "run folder" not in err and not (tmp_path / "run").exists()
    code, _, err = call("retrain", "DARTS_V2", *words[1:], "retrain.batch_size=64")
    assert code == 2 and "retrain.batch_size=" in err and "run folder" not in err


def test_check_knows_a_configuration_by_its_content(call, tmp_path):
    (tmp_path / "conf.json").write_text(json.dumps(load_config("smoke").to_dict()))
    code, out, _ = call("check", "conf.json")
    assert code == 0 and "configuration" in out
    (tmp_path / "conf.json").write_text('{"search": {"epoch": 3}}')
    code, _, err = call("check", "conf.json")
    assert code == 2 and "search.epochs" in err
    (tmp_path / "cell.json").write_text(load_genotype("DARTS_V2").to_json())
    code, out, _ = call("check", "cell.json")
    assert code == 0 and "genotype" in out
    (tmp_path / "conf.yaml").write_text("search.epochs: 3")
    code, _, err = call("check", "conf.yaml")
    assert code == 2 and "'search.epochs'" in err and "did you mean" not in err


def test_check_shows_what_is_read_of_images(call, tmp_path):
    photos(tmp_path / "photos")
    code, out, err = call("check", "folder:photos", "--json")
    assert code == 0 and json.loads(out)["classes"] == ["cat", "dog"] and sum(json.loads(out)["train"]) == 36
    assert "no test part" in err
    code, out, _ = call("check", "folder:photos")
    assert code == 0 and "dog" in out and "36" in out
    code, _, err = call("check", "photos")
    assert code == 2 and "check folder:photos" in err


def test_archives_get_the_line_that_unpacks_them(call, tmp_path):
    photos(tmp_path / "photos")
    shutil.make_archive("some photos", "zip", ".", "photos")
    shutil.make_archive("photos", "gztar", ".", "photos")
    np.savez("arrays.npz", x=np.zeros(3))
    os.rename("arrays.npz", "arrays.zip")
    for words in (["run", "--preset", "smoke", "--data"], ["check"]):
        assert "unzip 'some photos.zip' -d 'some photos'" in call(*words, "some photos.zip")[2]
        assert "npz:arrays.zip" in call(*words, "arrays.zip")[2]
    err = call("check", "folder:photos.tar.gz")[2]
    assert "mkdir -p photos && tar -xf photos.tar.gz -C photos" in err and "folder:photos." in err


def test_a_resumed_run_is_that_of_its_images_wherever_they_lie(call, tmp_path):
    photos(tmp_path / "photos")
    words = ["search", "--output", "run"]
    assert call(*words, "--config", "tiny.yaml", "--data", "folder:photos")[0] == 0
    before = (tmp_path / "run/data.json").read_bytes()
    shutil.copytree("photos", "more")
    shutil.copy("more/train/dog/000.png", "more/train/cat/new.png")
    code, _, err = call(*words, "--resume", "--data", "folder:more", "search.epochs=2")
    assert code == 2 and "images" in err and "--data" in err and (tmp_path / "run/data.json").read_bytes() == before
    os.rename("photos", "moved")
    code, _, err = call(*words, "--resume", "search.epochs=2", "performance.threads=1")
    assert code == 2 and "photos" in err
    code, _, err = call(*words, "--resume", "--data", "folder:moved", "search.epochs=2", "performance.threads=2")
    assert code == 0 and "bytes will differ" in err and "threads 1 -> 2" in err, err


NAMES = [b"K\xe4se", "K\u00e4se".encode(), b"[b]", b"\x1b[31mred", b"=cmd|' C calc'!A1", b'a,b "c"', b"two\nlines"]


def test_class_names_of_every_kind_go_through_a_whole_run(call, tmp_path):
    photos(tmp_path / "photos", NAMES, count=10)
    words = ["--config", "tiny.yaml", "--data", f"folder:{tmp_path / 'photos'}"]
    code, out, err = call("run", *words, "--output", "run")
    assert code == 0, err
    assert "\x1b" not in out + err and "run folder" in err and "UTF-8" in err
    names = json.loads((tmp_path / "run/retrain/data.json").read_text(encoding="utf-8"))["classes"]
    assert set(names) == {name_text(os.fsdecode(name)) for name in NAMES} and "K\\xe4se" in names
    picture = os.fsencode(tmp_path / "pics") + b"/[/bold]\x1b\xe4.png"
    os.makedirs(tmp_path / "pics" / "[")
    Image.new("RGB", (8, 8)).save(os.fsdecode(picture))
    code, out, err = call("predict", "run", os.fsdecode(picture))
    assert code == 0 and "[/bold]" in out and "\x1b" not in out + err, err
    code, out, _ = call("predict", "run", "pics", "--json")
    assert code == 0 and json.loads(out)["images"][0]["file"].encode("utf-8")


def test_accuracies_have_a_number_of_images_and_predict_an_exit_code_for_unread_files(call, tmp_path):
    photos(tmp_path / "photos")
    code, out, err = call("run", "--config", "tiny.yaml", "--data", "folder:photos", "--output", "run")
    assert code == 0 and "of 4 images" in out, out  # a tenth of 40
    assert "one of them is 25 points" in err
    long = "x" * 150 + ".png"
    os.mkdir("a" * 100)
    Image.new("RGB", (8, 8)).save(os.path.join("a" * 100, long))
    code, out, _ = call("predict", "run", "a" * 100)
    assert code == 0 and f"{'a' * 100}/{long}" in out
    (tmp_path / "bad.png").write_bytes(b"x")
    code, out, err = call("predict", "run", "a" * 100, "bad.png")
    assert code == 1 and long in out and "bad.png" in err


def test_names_under_a_locale_that_lacks_their_letters(tmp_path):
    photos(tmp_path / "Br\u00f6tchen", ["K\u00e4se".encode(), b"dog"])
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["retrain", "DARTS_V2", "--config", "tiny.yaml", "--data", "folder:Br\u00f6tchen", "--output", "run"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "nas_moreau", *words], cwd=tmp_path, env=os.environ | locale, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "run/data.json").read_text(encoding="utf-8"))
    assert data["classes"] == ["K\u00e4se", "dog"] and data["name"] == "folder:Br\u00f6tchen"


def test_a_data_folder_that_is_not_utf8_is_refused_before_anything_is_written(call, tmp_path):
    code, _, err = call("run", "--config", "tiny.yaml", "--data", os.fsdecode(b"folder:K\xe4se"), "--output", "run")
    assert code == 2 and "K\\xe4se" in err and "ln -s" in err and not (tmp_path / "run").exists()


# -- hyper-cleaning ----------------------------------------------------------------------------------------------------


def test_hyper_cleaning_leaves_the_labels_of_users_alone(call, tmp_path):
    photos(tmp_path / "photos", ["=cat", "dog"])
    code, out, err = call("solve", "hyper-cleaning", "--data", "folder:photos", "--steps", "3", "--output", "own")
    assert code == 0 and "changed" not in err and "of 4 images" in out
    rows = read_table(tmp_path / "own" / "suspects.csv")
    assert len(rows) == 36 and all(row["label"] == row["judged_as"] and row["corrupted"] == "0" for row in rows)
    assert all(row["label"] == ("'=cat" if "=cat" in row["file"] else "dog") for row in rows)
    words = ["--corrupt", "0.5", "--steps", "3", "--output", "shown"]
    code, _, err = call("solve", "hyper-cleaning", "--data", "folder:photos", *words)
    assert code == 0 and "labels were changed" in err
    assert "labels were changed" in (tmp_path / "shown" / "log.txt").read_text()
    rows = read_table(tmp_path / "shown" / "suspects.csv")
    assert any(row["label"] != row["judged_as"] for row in rows)
    for row in [*rows, *read_table(tmp_path / "shown" / "cleaned.csv")]:
        assert row["label"] == ("'=cat" if "=cat" in row["file"] else "dog")  # the label that the user gave


def test_solve_makes_a_folder_of_its_own(call, tmp_path):
    photos(tmp_path / "photos")
    for number in ("", "-2"):
        assert call("solve", "hyper-cleaning", "--data", "folder:photos", "--steps", "1")[0] == 0
        assert (tmp_path / f"checkpoints/solve-hyper-cleaning-seed0{number}/result.json").exists()
    assert call("solve", "hyper-cleaning", "--data", "folder:photoz")[0] == 2
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_the_demonstration_is_for_generated_images():
    from nas_moreau.problems.tasks import solve_options

    assert solve_options("hyper-cleaning", {}).model_dump()["corrupt"] == 0.5
    for name in ("folder:photos", "npz:a.npz", "cifar10"):
        assert solve_options("hyper-cleaning", {"data": {"name": name}}).model_dump()["corrupt"] == 0


# -- modules -----------------------------------------------------------------------------------------------------------


def test_files_of_the_working_folder_stand_in_for_nothing(tmp_path):
    photos(tmp_path / "photos")
    for name in ("PIL", "yaml", "numpy", "torch", "rich"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nraise RuntimeError\n")
    for words in (["list", "presets"], ["run", "--preset", "smoke", "--data", "folder:photos", "--dry-run"]):
        done = subprocess.run(
            [sys.executable, "-m", "nas_moreau", *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    (tmp_path / "mine.py").write_text("import sibling\n")
    (tmp_path / "sibling.py").write_text("")
    for name in ("mine", "mine.py"):
        words = ["list", "presets", "--import", name]
        done = subprocess.run(
            [sys.executable, "-m", "nas_moreau", *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["random.py", "random", "yaml.py", "json", "PIL.py", "nas_moreau.py"])
def test_an_import_hides_no_installed_module(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name.removesuffix('.py')}.py").write_text("raise RuntimeError")
    with pytest.raises(InputError) as caught:
        import_modules([name])
    assert "my_" in caught.value.cure and str(tmp_path) not in sys.path


# -- text --------------------------------------------------------------------------------------------------------------


def test_a_signal_before_the_folder_is_made_names_no_folder(call, monkeypatch):
    from nas_moreau.cli.verbs import VERBS

    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, "run", VERBS["run"]._replace(run=stopped))
    code, _, err = call("run", "--preset", "smoke", "--output", "new")
    assert code == 130 and "new" not in err


def test_too_little_memory_is_a_sentence(call, monkeypatch):
    from nas_moreau.cli.verbs import VERBS

    def full(args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 32400000000 bytes")

    monkeypatch.setitem(VERBS, "run", VERBS["run"]._replace(run=full))
    code, _, err = call("run", "--preset", "smoke")
    assert code == 1 and "memory" in err and "Allocator" not in err


def test_text_of_names():
    assert name_text(os.fsdecode(b"K\xe4se")) == "K\\xe4se" and name_text("Ka\u0308se") == "K\u00e4se"
    assert name_text("\ud800") == "\\ud800" and printable("a\x1b[1m\nb") == "a\\x1b[1m\\nb"
    assert [spreadsheet_text(text) for text in ("=1", "@a", "-b", "cat", "")] == ["'=1", "'@a", "'-b", "cat", ""]


def test_an_option_that_is_given_twice_with_two_values_is_noted(call):
    code, _, err = call("show", "DARTS_V2", "--draw", "a.svg", "--draw", "b.svg")
    assert code == 0 and "--draw" in err and "b.svg" in err.splitlines()[0] and not os.path.exists("a.svg")
    code, _, err = call("show", "DARTS_V2", "--draw", "b.svg", "--draw", "b.svg")
    assert code == 0 and "more than once" not in err
    code, _, err = call("run", "--config", "tiny.yaml", "seed=1", "seed=2", "space=nowhere", "--dry-run")
    assert code == 2 and "seed is given more than once" in err


def test_check_tries_a_configuration_on_this_machine(call, tmp_path):
    (tmp_path / "a.yaml").write_text("space: nowhere")
    code, _, err = call("check", "a.yaml")
    assert code == 2 and "nowhere" in err
    (tmp_path / "b.yaml").write_text("space: toy\ndevice: meta\ndata: {name: 'folder:missing'}")
    code, out, _ = call("check", "b.yaml", "--json")
    missing = json.loads(out)["not_here"]
    assert code == 0 and len(missing) == 2 and "missing" in missing[1]
    code, out, _ = call("check", "tiny.yaml")
    assert code == 0 and len(out.splitlines()) == 1


def test_a_configuration_without_a_length_is_not_begun_silently(call, tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    code, _, err = call("search", "--config", "empty.yaml", "--output", "a", "space=nowhere")
    assert code == 2 and "search.epochs" in err and "50" in err
    code, _, err = call("search", "--config", "empty.yaml", "--output", "a", "space=nowhere", "search.epochs=1")
    assert code == 2 and "search.epochs" not in err


def test_images_may_be_given_by_their_path(tmp_path):
    photos(tmp_path / "photos")
    assert load_data(tmp_path / "photos").digest == load_data(f"folder:{tmp_path / 'photos'}").digest
    assert source_of(tmp_path / "a.npz") == f"npz:{tmp_path / 'a.npz'}"


def test_floating_point_images_are_refused_with_a_cure(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(11):
            Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / name / f"{index}.tif")
    with pytest.raises(InputError, match=r"0\.\.255"):
        load_data(tmp_path)


def test_a_command_within_another_leaves_notes_and_resuming_to_it(call, monkeypatch, tmp_path):
    photos(tmp_path / "photos")
    words = ["check", "folder:photos"]
    assert "8x8" in call(*words)[2]
    monkeypatch.setenv(WITHIN, "1")
    assert "8x8" not in call(*words)[2]


def test_the_report_of_one_run_can_be_written_elsewhere(call, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text('{"stage": "search", "state": "running"}')
    code, out, _ = call("report", "run", "--output", "elsewhere.html")
    assert code == 0 and out.strip() == "elsewhere.html" and (tmp_path / "elsewhere.html").is_file()

    def refused(*given):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(report, "write_atomic", refused)
    code, _, err = call("report", "run")
    assert code == 2 and "--output" in err


def test_missing_images_are_refused_before_torch_is_loaded(tmp_path):
    """Loading torch takes seconds: in a process of its own, since this one has loaded it."""
    commands = [
        ["run", "--preset", "smoke", "--data", "folder:absent"],
        ["search", "--preset", "smoke", "--data", "cifar10", "--dry-run"],
        ["retrain", "DARTS_V2", "--preset", "cpu", "--data", "npz:absent.npz"],
        ["solve", "hyper-cleaning", "--data", "idx:absent"],
    ]
    program = "import sys; from nas_moreau.cli.entry import main; codes = [main(words) for words in {}]; "
    program = program.format(commands) + "sys.exit(f'{codes} {\"torch\" in sys.modules}')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "[2, 2, 2, 2] False", done.stderr
    assert done.stderr.count("absent") == 3 and "--download" in done.stderr and not list(tmp_path.iterdir())
