"""The Python front door: what a person does with a run in a session, on tiny images."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import nas_moreau
from nas_moreau import Genotype, InputError, Result, load_config, load_run
from nas_moreau.data import data_from_arrays

TINY = {
    "search": {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4, "channels": 2, "image_size": None},
    "derive": {"trained": {"candidates": 2, "steps": 1, "batch_size": 4, "channels": 2}},
    "retrain": {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4, "channels": 2},
    "logging": {"tensorboard": False},
}
TINY_RETRAIN = {key: TINY[key] for key in ("retrain", "logging")}


def arrays(n=60, size=16):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return pixels, np.arange(n) % 3, pixels[:30], np.arange(30) % 3


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return nas_moreau.run("smoke", tmp_path_factory.mktemp("runs") / "a", data=arrays(), **TINY)


def test_what_came_out(result):
    assert isinstance(result, Result) and isinstance(result.genotype, Genotype)
    assert 0 <= result.test_accuracy <= 1 and result.search.seed == 0 and result.retrain.epochs == 1
    assert result.genotype.digest() in repr(result)
    assert json.loads(json.dumps(result.to_dict())) == json.loads((result.path / "result.json").read_text())
    assert result.metrics["epoch"] == [0] and len(result.metrics["train_loss"]) == 1
    page = result.report
    assert page.endswith("report.html") and result.genotype.digest() in Path(page).read_text(encoding="utf-8")
    assert "nas-moreau " in result.verdict and result.search.health.verdict in result.verdict
    assert "<svg" in result._repr_html_()


def test_a_folder_gives_the_same_object(result):
    again = load_run(str(result.path))
    assert again.to_dict() == result.to_dict() and again.search == result.search and again.retrain == result.retrain
    assert again.verdict == result.verdict
    for stage in ("search", "retrain"):
        part = load_run(result.path / stage)
        assert part.to_dict() == json.loads((result.path / stage / "result.json").read_text())
    assert load_run(result.path / "search").test_accuracy is None


def test_its_network_classifies(result, tmp_path):
    from PIL import Image

    x_train, *_ = arrays()
    rows = result.predict(x_train[:5])
    first = torch.from_numpy(x_train[:5]).permute(0, 3, 1, 2)
    for form in (first, x_train[:5].astype(np.float32), first.float() / 255):
        for row, other in zip(rows, result.predict(form)):
            assert row["class"] == other["class"] and row["probability"] == pytest.approx(
                other["probability"], abs=1e-3
            )
    assert len(result.predict(x_train[0])) == 1 and set(rows[0]["probabilities"]) == {"0", "1", "2"}
    Image.fromarray(x_train[0]).save(tmp_path / "a.png")
    (found,) = result.predict(tmp_path / "a.png")
    assert found["file"].endswith("a.png") and found["class"] == rows[0]["class"]
    assert found["probabilities"] == pytest.approx(rows[0]["probabilities"], abs=1e-5)
    assert result.predict([tmp_path / "a.png"]) == [found]
    assert not result.network().training and result.network().genotype == result.genotype
    with pytest.raises(InputError, match="channels"):
        result.predict(np.zeros((2, 16, 16), np.uint8))
    with pytest.raises(InputError):
        result.predict([1, 2])


def test_it_is_evaluated_on_its_images_and_on_others(result):
    images = arrays()
    assert result.evaluate(images).evaluation.accuracy == pytest.approx(result.test_accuracy)
    assert result.evaluate(data_from_arrays(*images)).evaluation.accuracy == pytest.approx(result.test_accuracy)
    with pytest.raises(InputError, match="arrays"):
        result.evaluate()


def test_it_is_exported(result, tmp_path):
    place = result.export("python", tmp_path / "out")
    assert place == tmp_path / "out" and (place / "model.py").exists()
    with pytest.raises(InputError):
        result.export("pickle", tmp_path / "other")


def test_a_run_is_measured_against_random_cells_and_more_of_them_may_follow(tmp_path):
    first = nas_moreau.run("smoke", tmp_path / "a", data=arrays(), against_random=1, **TINY)
    assert len(first.to_dict()["random"]) == 1 and " of 1 random cells" in first.verdict
    before = (tmp_path / "a" / "retrain" / "result.json").read_bytes()
    more = nas_moreau.run("smoke", tmp_path / "a", True, arrays(), against_random=2, **TINY)
    rows = more.to_dict()["random"]
    assert len(rows) == 2 and rows[0] == first.to_dict()["random"][0] and rows[0]["digest"] != rows[1]["digest"]
    assert (tmp_path / "a" / "retrain" / "result.json").read_bytes() == before
    assert "Against chance" in Path(more.report).read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a" / "result.json").read_text())["random"] == rows
    with pytest.raises(InputError, match="against_random"):
        nas_moreau.run("smoke", tmp_path / "a", True, arrays(), against_random=1, **TINY)


def test_search_and_retrain_likewise(tmp_path):
    found = nas_moreau.search("smoke", tmp_path / "s", data=arrays(), seed=3, **TINY)
    assert found.search.seed == 3 and found.retrain is None and found.test_accuracy is None
    assert "nas-moreau derive" in found.verdict or "nas-moreau retrain" in found.verdict
    with pytest.raises(InputError, match="retraining"):
        found.network()
    trained = nas_moreau.retrain("smoke", found.genotype, tmp_path / "r", data=arrays(), **TINY)
    assert trained.genotype == found.genotype and trained.search is None
    assert "nas-moreau predict" in trained.verdict


def test_configurations_of_every_kind_and_nested_settings(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("space: toy\nsearch: {alphas: {lr: 0.5, lr_min: 0.25}}\n")
    for i, config in enumerate(("smoke", path, load_config(path=path))):
        found = nas_moreau.search(config, tmp_path / str(i), data=arrays(), **TINY | {"seed": i})
        stored = load_run(found.path)._run.search.config
        assert stored["seed"] == i and stored["search"]["channels"] == 2 and stored["data"]["name"] == "arrays"
        assert stored["search"]["alphas"]["lr"] == (0.01 if i == 0 else 0.5)
    with pytest.raises(InputError, match=r"absent\.yaml"):
        nas_moreau.run("absent.yaml", tmp_path / "x")
    with pytest.raises(InputError, match="smok"):
        nas_moreau.run("smok", tmp_path / "x")
    with pytest.raises(InputError, match="epoch"):
        nas_moreau.run("smoke", tmp_path / "x", search={"epoch": 3})
    with pytest.raises(InputError):
        nas_moreau.run("smoke", tmp_path / "x", data=(1, 2, 3))
    with pytest.raises(InputError):
        nas_moreau.run("smoke", resume=True)
    with pytest.raises(InputError):
        load_run(tmp_path / "absent")
    assert not (tmp_path / "x").exists()


def test_a_search_inside_a_module_is_no_result(tmp_path):
    (tmp_path / "status.json").write_text('{"stage": "module", "state": "finished"}')
    with pytest.raises(InputError, match="module"):
        load_run(tmp_path)


def test_without_a_folder_a_new_one_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (
        nas_moreau.search("smoke", data=arrays(), search={**TINY["search"], "method": "random"}) for _ in "ab"
    )
    assert [r.path.as_posix() for r in (first, second)] == [
        "checkpoints/search-smoke-seed0",
        "checkpoints/search-smoke-seed0-2",
    ]


def test_the_callers_random_numbers_stay_as_they_are(result, tmp_path):
    def draws():
        return torch.rand(4).tolist(), np.random.random(4).tolist()

    retrain = TINY["retrain"] | {"mixup": 0.2}
    kept = {
        "a run": lambda: nas_moreau.run("smoke", tmp_path / "a", data=arrays(), **(TINY | {"retrain": retrain})),
        "a network": lambda: load_run(result.path).network(),
        "an evaluation": lambda: load_run(result.path).evaluate(arrays()),
        "an export": lambda: load_run(result.path).export("python", tmp_path / "exported"),
    }
    for what, call in kept.items():
        torch.manual_seed(3)
        np.random.seed(3)
        wanted = draws()
        torch.manual_seed(3)
        np.random.seed(3)
        call()
        assert draws() == wanted, what


def test_dark_images_of_16_bits_are_read_as_those_of_the_training(tmp_path):
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 4096, (60, 16, 16, 1)).astype(np.uint16), np.arange(60) % 3  # 12 bits
    cell = nas_moreau.load_genotype("DARTS_V2")
    data = (pixels, labels, pixels, labels)
    trained = nas_moreau.retrain("smoke", cell, tmp_path / "a", data=data, space="darts", **TINY_RETRAIN)
    dark = pixels[:2] // 5
    both = trained.predict(np.concatenate([dark, pixels[:1]]))
    alone = trained.predict(dark)
    for row, other in zip(alone, both):
        assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    for unclear in (pixels[:1] // 32, pixels[:1] * 4):  # 0 to 127 in 16 bits; beyond the white of the training
        with pytest.raises(InputError, match="astype"):
            trained.predict(unclear)
    bytes_ = np.rint(pixels[:1] * (255 / 4095)).astype(np.uint8)
    assert trained.predict(bytes_)[0]["probabilities"] == pytest.approx(both[2]["probabilities"], abs=1e-5)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "autocast"])
def test_the_callers_modes_of_torch_change_nothing(mode, result, tmp_path):
    modes = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    enter = modes.get(mode, lambda: torch.autocast("cpu", torch.bfloat16))
    losses = []
    for name, within in (("plain", nullcontext), (mode, enter)):
        with within():
            trained = nas_moreau.retrain("smoke", result.genotype, tmp_path / name, data=arrays(), **TINY_RETRAIN)
        losses.append(trained.metrics["train_loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("shape", [(60, 8, 8), (60, 8, 8, 1), (60, 3, 8, 8), (60, 8, 8, 3)])
def test_later_changes_of_an_array_do_not_reach_the_data(shape):
    pixels, labels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), np.arange(60) % 3
    for given in ((pixels, labels), (torch.from_numpy(pixels), torch.from_numpy(labels))):
        data = data_from_arrays(*given, *given)
        kept = [part.clone() for images in (data.train, data.test) for part in (images.pixels, images.labels)]
        pixels ^= 255
        labels[:] = (labels + 1) % 3
        after = [part for images in (data.train, data.test) for part in (images.pixels, images.labels)]
        assert all(torch.equal(a, b) for a, b in zip(kept, after))
