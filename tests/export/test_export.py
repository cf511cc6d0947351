"""Exports compute what the network computes, say how they are to be used, and fail without leaving anything."""

import ast
import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nas_moreau.architecture import load_genotype, load_space, parameter_count, published_cell
from nas_moreau.architecture.spaces.operation_table import OPERATIONS, OperationInfo
from nas_moreau.config import load_config
from nas_moreau.data import Data, Images
from nas_moreau.errors import InputError
from nas_moreau.export import formats as stage
from nas_moreau.export.classifier import from_export, from_run, untrained
from nas_moreau.export.formats import ExportFailed, export, write_python
from nas_moreau.export.model_card import model_card
from nas_moreau.export.predict import predict
from nas_moreau.runs.checkpoint import read_checkpoint
from nas_moreau.training.retrain import retrain

BENCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
EMPTY = "|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"
TINY = [
    "retrain.channels=4",
    "retrain.layers=3",
    "retrain.epochs=1",
    "retrain.steps_per_epoch=2",
    "retrain.batch_size=8",
    "retrain.augment.crop=1",
]


def tiny_data(channels=3, size=(8, 8)):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, channels, *size), generator=draw, dtype=torch.uint8)
    images = Images(pixels, torch.arange(30) % 3)
    return Data("tiny", ("ant", "bée", "cat"), images, images, (0.5,) * channels, (0.25,) * channels, ("A note.",))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A retraining folder with an auxiliary head and a moving average: its weights are the exported ones."""
    folder = tmp_path_factory.mktemp("run") / "retrain"
    config = load_config(overrides=[*TINY, "retrain.ema=0.5"])
    retrain(config, published_cell("PC_DARTS_cifar"), folder, data=tiny_data())
    return folder, config


def without_training(genotype, monkeypatch, *overrides, data=None):
    monkeypatch.setattr("nas_moreau.export.classifier.load_images", lambda config: data or tiny_data())
    config = load_config(overrides=[*TINY, "retrain.auxiliary=false", *overrides])
    return untrained(load_genotype(genotype), config)


FORMS = [
    "safetensors",
    "python",
    pytest.param("torch-export", marks=pytest.mark.slow),
    pytest.param("onnx", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("form", FORMS)
def test_each_format_gives_the_numbers_of_the_run(form, run, tmp_path):
    trained = from_run(*run)
    if form == "onnx":
        pytest.importorskip("onnxscript")
    result = export(trained, form, tmp_path / "out")
    assert result["trained"] and result["parameters"] == parameter_count(trained.network)
    assert result["files"] == sorted({"README.md", "config.json", "files.json", "model.safetensors", stage.FILES[form]})
    assert {check["batch"] for check in result["checks"]} == {1, 3}
    assert {check["what"] for check in result["checks"]} == {"timm"} | ({form} - {"safetensors"})
    assert max(check["largest_difference"] for check in result["checks"]) <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    # the weights are those of the moving average, whose accuracy the result tells
    ema = read_checkpoint(run[0] / "checkpoints" / "best.pt")["ema"]
    assert all(torch.equal(ema[name], tensor) for name, tensor in trained.network.state_dict().items())
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        facts = session.get_modelmeta().custom_metadata_map
        assert json.loads(facts["classes"]) == ["ant", "bée", "cat"] and json.loads(facts["mean"]) == [0.5] * 3
        with torch.no_grad():
            torch.testing.assert_close(found, trained.network(images), atol=1e-4, rtol=0)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for text in ("ant, bée, cat", "tiny", "A note.", trained.genotype.digest(), f"{result['macs']:,}", "n = 1"):
        assert text in card
    again = from_export(tmp_path / "out")
    assert again.data == trained.data and again.record["result"] == trained.record["result"]
    with torch.no_grad():
        assert torch.equal(again.network(images), trained.network(images))


CELLS = [
    ("DARTS_V2", 5, (32, 32)),
    ("NASNet", 3, (9, 13)),
    ("AmoebaNet", 2, (8, 8)),
    ("GDAS_V1", 1, (8, 9)),
    (BENCH, 2, (11, 8)),
    (EMPTY, 1, (8, 8)),
]


@pytest.mark.parametrize("genotype, layers, size", CELLS, ids=[f"{cell[0][:9]}-{cell[1]}" for cell in CELLS])
def test_the_stand_alone_file_gives_equal_bits_in_float64(genotype, layers, size, tmp_path, monkeypatch):
    trained = without_training(genotype, monkeypatch, f"retrain.layers={layers}", data=tiny_data(1, size))
    export(trained, "python", tmp_path / "out")
    network = stage.load_python(tmp_path / "out" / "model.py").double()
    reference = trained.network.double()
    reference.drop_path = 0.0
    assert network.state_dict().keys() == reference.state_dict().keys()
    images = torch.randn(3, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for training in (False, True):
        with torch.no_grad():
            assert torch.equal(network.train(training)(images), reference.train(training)(images))


def test_the_stand_alone_file_knows_every_operation(tmp_path, monkeypatch):
    names = [name for name, row in OPERATIONS.items() if row.build is None and name not in ("none", "noise")]
    edges = [[name, index % 2, 2 + index // 2] for index, name in enumerate(names)]
    cell = {"edges": edges, "concat": sorted({edge[2] for edge in edges})}
    genotype = json.dumps({"version": 1, "space": "all", "cells": {"normal": cell, "reduce": cell}})
    trained = without_training(genotype, monkeypatch)
    checks = export(trained, "python", tmp_path / "out")["checks"]
    assert checks[-1]["what"] == "python" and checks[-1]["largest_difference"] == 0


def test_the_stand_alone_file_needs_torch_alone(tmp_path, monkeypatch):
    trained = without_training("PDARTS", monkeypatch)
    export(trained, "python", tmp_path / "out")
    source = (tmp_path / "out" / "model.py").read_text(encoding="utf-8")
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"torch"}
    code = (
        "import sys\n"
        "for name in ('nas_moreau', 'timm', 'safetensors', 'torchvision'): sys.modules[name] = None\n"
        "import torch\nfrom model import CLASSES, IMAGE_SIZE, load, normalise\n"
        "print(load()(normalise(torch.zeros(2, 3, *IMAGE_SIZE, dtype=torch.uint8))).shape, len(CLASSES))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True, check=False
    )
    assert done.stdout == "torch.Size([2, 3]) 3\n", done.stderr


def test_names_are_text_in_the_model_card_and_folders_of_others_stay(tmp_path, monkeypatch, make_data):
    names = ("<script>alert(1)</script>", "[a](http://b)", "two\nlines | # three", "`c`")
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "mine").touch()
    classifier = without_training("PDARTS", monkeypatch, data=make_data(classes=names))
    export(classifier, "safetensors", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in card.splitlines() if line.startswith("| classes")]
    assert "<script>" not in card and "](http" not in card and row.count("|") - row.count("\\|") == 3
    assert (tmp_path / ".out.partial" / "mine").exists() and len(list(tmp_path.iterdir())) == 2


def test_wrong_numbers_are_noticed_and_nothing_is_left(tmp_path, monkeypatch):
    trained = without_training("PDARTS", monkeypatch)
    right = stage.load_python

    def load_other(path):
        network = right(path)
        network.classifier.bias.data += 1e-3
        return network

    monkeypatch.setattr(stage, "load_python", load_other)
    with pytest.raises(ExportFailed, match="python"):
        export(trained, "python", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_noise_and_own_operations_are_refused(tmp_path, monkeypatch):
    trained = without_training("PDARTS", monkeypatch)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="already holds files"):
        export(trained, "safetensors", tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="cannot be written"):
        export(trained, "safetensors", tmp_path / "full" / "mine.txt" / "sub")
    noisy = load_space("robust_darts_s4").random_genotype(random.Random(0)).to_json()
    with pytest.raises(InputError, match="random"):
        export(without_training(noisy, monkeypatch), "safetensors", tmp_path / "noise")
    own = OperationInfo("sep_conv_3x3", "own", build=lambda channels, stride, norm: torch.nn.Identity())
    monkeypatch.setitem(OPERATIONS, "sep_conv_3x3", own)
    with pytest.raises(InputError, match="your own code"):
        write_python(trained, tmp_path / "model.py")


def test_an_untrained_export_says_so(tmp_path, monkeypatch):
    trained = without_training(BENCH, monkeypatch)
    assert export(trained, "safetensors", tmp_path / "out")["trained"] is False
    assert "random" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_damaged_exports_are_refused(tmp_path, monkeypatch):
    export(without_training("PDARTS", monkeypatch), "safetensors", tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        from_export(tmp_path / "out")
    (tmp_path / "out" / "files.json").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        from_export(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(InputError, match="none of"):
        from_export(tmp_path / "out")


def _with(config, *path_and_value):
    *path, last, value = path_and_value
    place = config
    for key in path:
        place = place[key]
    place[last] = value
    return config


FORGED = {
    "layers of a minute": lambda c: _with(c, "model_args", "layers", 10**9),
    "layers that are true": lambda c: _with(c, "model_args", "layers", True),
    "channels beyond memory": lambda c: _with(c, "model_args", "channels", 10**8),
    "other channels": lambda c: _with(c, "model_args", "channels", 8),
    "no test images": lambda c: c["nas_moreau"]["data"].pop("test") and c,
    "a mean that is no number": lambda c: _with(c, "nas_moreau", "data", "mean", [None, 0.5, 0.5]),
    "a mean of NaN": lambda c: _with(c, "nas_moreau", "data", "mean", [float("nan")] * 3),
    "a std of zero": lambda c: _with(c, "nas_moreau", "data", "std", [0.0, 0.5, 0.5]),
    "a huge image": lambda c: _with(c, "nas_moreau", "data", "image_size", [10**9, 10**9]),
    "classes that are numbers": lambda c: _with(c, "nas_moreau", "data", "classes", [1, 2, 3]),
    "other weights": lambda c: _with(c, "nas_moreau", "weights", "0" * 64),
    "a cell of text": lambda c: _with(c, "model_args", "genotype", "x"),
    "a list": lambda c: [c],
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("exported") / "out"
        export(without_training("PDARTS", patch), "safetensors", place)
    return place


@pytest.mark.parametrize("forge", FORGED)
def test_forged_descriptions_are_one_sentence_before_memory_is_taken(forge, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "out" / "files.json").unlink()
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "out" / "config.json").write_text(json.dumps(FORGED[forge](config)), encoding="utf-8")
    with pytest.raises(InputError):
        from_export(tmp_path / "out")


def test_every_bit_of_a_description_counts(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "out")
    path, draw = tmp_path / "out" / "config.json", random.Random(0)
    data = path.read_bytes()
    for bit in (draw.randrange(8 * len(data)) for _ in range(100)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        with pytest.raises(InputError, match=r"config\.json"):
            from_export(tmp_path / "out")


def test_an_export_deletes_nothing_of_others(monkeypatch, tmp_path):
    mine = tmp_path / ".out.partial"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    export(without_training("PDARTS", monkeypatch), "safetensors", tmp_path / "out")
    assert (mine / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "out"]


def test_names_of_classes_are_no_markup_in_a_card(exported):
    classifier = from_export(exported)
    names = ["<script>alert(1)</script>", "a\n# Fake", "[x](http://y)", "=cmd|' /C calc'!A1"]
    data = classifier.data | {
        "classes": names,
        "train": [1] * 4,
        "test": [1] * 4,
        "name": "folder:<b>|x",
        "notes": ["<i>"],
    }
    card = model_card(replace(classifier, data=data), "safetensors", [])
    assert "<script>" not in card and "\n# Fake" not in card and "[x](" not in card and "<b>" not in card
    assert "<i>" not in card and card.count("\n# ") == 1


def test_predictions_of_a_run_and_its_export_are_equal_and_name_classes(run, tmp_path):
    trained = from_run(*run)
    export(trained, "safetensors", tmp_path / "out")
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    files = [folder / "0.png", folder / "1.png", folder / "deeper" / "2.png", folder / "deeper" / "still" / "3.png"]
    files[-1].parent.mkdir(parents=True)
    for index, mode in enumerate(("RGB", "L", "P", "RGBA")):
        size = (8, 8) if index == 0 else (20 + index, 11)
        pixels = draw.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(files[index])
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not meant")
    result = predict(trained, [folder, tmp_path / "missing.png"])
    assert [row["file"] for row in result["images"]] == [str(file) for file in files]
    assert [row["file"] for row in result["unreadable"]] == [str(folder / "broken.png"), str(tmp_path / "missing.png")]
    assert all("Errno" not in row["reason"] for row in result["unreadable"])
    for row in result["images"]:
        assert set(row["probabilities"]) == {"ant", "bée", "cat"}
        assert abs(sum(row["probabilities"].values()) - 1) < 1e-12
        assert row["probability"] == row["probabilities"][row["class"]] == max(row["probabilities"].values())
    assert predict(from_export(tmp_path / "out"), [folder])["images"] == result["images"]
    # by hand: the first image has the network's size
    pixels = torch.from_numpy(np.asarray(Image.open(folder / "0.png")).copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        by_hand = trained.network((pixels / 255 - 0.5) / 0.25).double().softmax(-1)[0]
    found = torch.tensor(list(result["images"][0]["probabilities"].values()), dtype=torch.float64)
    torch.testing.assert_close(found, by_hand, atol=1e-6, rtol=0)
    (folder / "empty").mkdir()
    for paths, named in ((["broken.png"], "broken.png"), (["broken.png"] * 3, "3 files"), (["empty"], "empty")):
        with pytest.raises(InputError, match=named):
            predict(trained, [folder / path for path in paths])


def test_a_run_without_the_description_of_its_images_is_refused(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "old")
    (tmp_path / "old" / "data.json").unlink()
    with pytest.raises(InputError, match="old"):
        from_run(tmp_path / "old", run[1])
