"""What a run is made of is compared by content, by every reader."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from nas_moreau import distributed
from nas_moreau.architecture import load_space
from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.data import Data, Images
from nas_moreau.errors import InputError
from nas_moreau.export.classifier import from_run
from nas_moreau.pipeline import evaluate_run
from nas_moreau.pipeline import run as run_all
from nas_moreau.problems.tasks import solve_on_data
from nas_moreau.runs import RunFolder, folder, load_checkpoint, save_checkpoint
from nas_moreau.runs.checkpoint import encode, read_checkpoint
from nas_moreau.runs.environment import changes_of_bytes
from nas_moreau.runs.identity import PARTS, recorded_identity, refuse_other
from nas_moreau.runs.own_checkpoints import own_best, own_checkpoint
from nas_moreau.search.derive import derive_run
from nas_moreau.search.stage import search
from nas_moreau.training.resume import open_folder
from nas_moreau.training.retrain import retrain

CELL = published_cell("DARTS_V2")
QUICK = ["search.epochs=2", "search.steps_per_epoch=1", "retrain.epochs=1", "retrain.steps_per_epoch=1"]
QUICK += ["logging.tensorboard=false", "retrain.auxiliary=false"]


def with_pixel(data: Data) -> Data:
    pixels = data.train.pixels.clone()
    pixels[7, 0, 3, 3] ^= 1
    return replace(data, train=Images(pixels, data.train.labels))


def with_label(data: Data) -> Data:
    labels = data.train.labels.clone()
    labels[[0, 1]] = labels[[1, 0]]
    return replace(data, train=Images(data.train.pixels, labels))


OTHERS = {
    "a pixel": with_pixel,
    "a label": with_label,
    "the order": lambda data: replace(data, train=data.train.take(torch.arange(60, device="cpu").flip(0))),
    "a test image": lambda data: replace(data, test=with_pixel(data).train),
    "an image more": lambda data: replace(data, train=data.train.take(torch.arange(61, device="cpu") % 60)),
    "the classes": lambda data: replace(data, classes=("b", "a", "c")),
    "the statistics": lambda data: replace(data, mean=(0.4,) * 3),
}


@pytest.fixture(scope="module")
def make(tiny_config):
    return lambda *more: tiny_config(*QUICK, *more)


@pytest.fixture(scope="module")
def finished(make, tiny_data, tmp_path_factory):
    """A search and a retraining, and those of another seed."""
    place = tmp_path_factory.mktemp("finished")
    for seed in (0, 1):
        search(make(f"seed={seed}"), place / f"search{seed}", data=tiny_data)
        retrain(make(f"seed={seed}", "space=darts"), CELL, place / f"retrain{seed}", data=tiny_data)
    return place


@pytest.fixture
def place(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


def readers(place, make):
    config, wide, longer = make(), make("space=darts"), make("space=darts", "retrain.epochs=2")
    derive = config.model_copy(update={"derive": config.derive.model_copy(update={"rule": "selection"})})
    return {
        "resume a search": lambda data: search(make("search.epochs=3"), place / "search0", True, data),
        "resume a retraining": lambda data: retrain(longer, CELL, place / "retrain0", True, data),
        "evaluate a search": lambda data: evaluating(data, place / "search0", config),
        "evaluate a retraining": lambda data: evaluating(data, place / "retrain0", wide),
        "derive": lambda data: derive_run(place / "search0", derive, data),
    }


def evaluating(data, folder, config):
    import nas_moreau.pipeline as pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load_images", lambda config: data)
        return evaluate_run(folder, config)


@pytest.mark.parametrize("change", OTHERS)
def test_the_digest_of_the_images_counts_every_part_and_no_place(change, tiny_data):
    assert replace(tiny_data, name="elsewhere", notes=("moved",)).digest == tiny_data.digest
    strided = tiny_data.train.pixels.to(memory_format=torch.channels_last)
    assert replace(tiny_data, train=Images(strided, tiny_data.train.labels)).digest == tiny_data.digest
    assert OTHERS[change](tiny_data).digest != tiny_data.digest


READERS = ["resume a search", "resume a retraining", "evaluate a search", "evaluate a retraining", "derive"]


@pytest.mark.parametrize("reader", READERS)
def test_other_images_are_refused_by_every_reader_and_equal_ones_are_not(reader, place, make, tiny_data):
    read = readers(place, make)[reader]
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and path.name != ".lock"}
    for change in ("a pixel", "a label"):
        with pytest.raises(InputError, match="images") as caught:
            read(OTHERS[change](tiny_data))
        assert "--data" in caught.value.cure
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and path.name != ".lock"} == before
    read(replace(tiny_data, name="moved"))


def test_a_moved_data_set_is_taken_over_by_its_content(place, make, tiny_data):
    moved = make("data.name=npz:elsewhere.npz", "search.epochs=3")
    assert search(moved, place / "search0", True, replace(tiny_data, name="npz:elsewhere.npz")).steps == 3
    assert "elsewhere" in (place / "search0" / "config.yaml").read_text()


@pytest.mark.parametrize("stage", ["search", "retrain"])
@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_the_checkpoint_of_another_seed_is_refused(stage, name, place, make, tiny_data):
    own, other = (place / f"{stage}{seed}" for seed in (0, 1))
    shutil.copy(other / "checkpoints" / name, own / "checkpoints" / name)
    (own / "checkpoints" / "previous.pt").unlink(missing_ok=True)
    reads = [lambda: own_checkpoint(own)] if name == "last.pt" else [lambda: own_best(own)]
    if stage == "retrain" and name == "best.pt":
        reads += [lambda: from_run(own, make("space=darts")), lambda: evaluating(tiny_data, own, make("space=darts"))]
    if stage == "search" and name == "last.pt":
        reads += [lambda: derive_run(own, make()), lambda: search(make("search.epochs=3"), own, True, tiny_data)]
    for read in reads:
        with pytest.raises(InputError, match="configuration"):
            read()


def test_weights_that_are_not_those_of_the_result_are_refused(place, make, tiny_data):
    path = place / "retrain0" / "checkpoints" / "best.pt"
    payload = read_checkpoint(path)
    payload["model"]["classifier.bias"][0] += 1
    path.write_bytes(encode(payload))
    with pytest.raises(InputError, match="weights"):
        from_run(place / "retrain0", make("space=darts"))


def test_other_cells_and_another_space_are_refused(place, make, tiny_data, monkeypatch):
    with pytest.raises(InputError, match="genotype"):
        retrain(make("space=darts"), published_cell("DARTS_V1"), place / "retrain0", True, tiny_data)
    digest = type(load_space("toy")).digest
    monkeypatch.setattr(type(load_space("toy")), "digest", lambda self: digest(self)[::-1])
    folder = place / "search0"
    for read in (lambda: derive_run(folder, make()), lambda: search(make(), folder, True, tiny_data)):
        with pytest.raises(InputError, match="space"):
            read()


DAMAGES = {
    "no digests": lambda p: p | {"digests": {}},
    "digests of another kind": lambda p: p | {"digests": 3},
    "a step of the far future": lambda p: p | {"counters": p["counters"] | {"step": 10**9, "epochs": 10**9}},
    "a step without its epochs": lambda p: p | {"counters": p["counters"] | {"step": 10**9}},
    "a negative step": lambda p: p | {"counters": p["counters"] | {"step": -5}},
    "a step that is true": lambda p: p | {"counters": p["counters"] | {"step": True}},
    "endless seconds": lambda p: p | {"counters": p["counters"] | {"seconds": float("inf")}},
    "float64": lambda p: p | {"y": [t.double() for t in p["y"]]},
    "other shapes": lambda p: p | {"y": [t.flatten() for t in p["y"]]},
    "a tensor less": lambda p: p | {"x": p["x"][1:]},
    "no state": lambda p: {key: value for key, value in p.items() if key != "state"},
}


@pytest.fixture(scope="module")
def solved(make_data, tmp_path_factory):
    data, place = make_data(120), tmp_path_factory.mktemp("solved")
    for seed in (0, 1):
        options = {"steps": 4, "corrupt": 0.5, "n": 10, "seed": seed, "device": "cpu"}
        solve_on_data("hyper-cleaning", options, place / str(seed), data=data)
    return place, data


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("stage", ["search", "solve"])
def test_a_checkpoint_that_cannot_be_its_own(stage, damage, place, solved, tmp_path, make, tiny_data):
    if stage == "search":
        folder = place / "search0"
        resume = lambda: search(make("search.epochs=3"), folder, True, tiny_data)  # noqa: E731
    else:
        folder = tmp_path / "solve"
        shutil.copytree(solved[0] / "0", folder)
        unfinished(folder)
        resume = lambda: solve_on_data("hyper-cleaning", {}, folder, True, solved[1])  # noqa: E731
    save_checkpoint(folder / "checkpoints", DAMAGES[damage](load_checkpoint(folder / "checkpoints")[0]))
    with pytest.raises(InputError) as caught:
        resume()
    assert str(folder) in caught.value.cause


def unfinished(folder):
    for name in ("result.json", "files.json"):
        (folder / name).unlink()


def test_solve_is_resumed_on_its_own_images_and_checkpoint_alone(solved, tmp_path):
    place, data = solved
    shutil.copytree(place / "0", tmp_path / "a")
    with pytest.raises(InputError, match="images"):
        solve_on_data("hyper-cleaning", {}, tmp_path / "a", True, with_pixel(data))
    unfinished(tmp_path / "a")
    with pytest.raises(InputError, match="images"):
        solve_on_data("hyper-cleaning", {}, tmp_path / "a", True, with_pixel(data))
    shutil.copy(place / "1" / "checkpoints" / "last.pt", tmp_path / "a" / "checkpoints" / "last.pt")
    with pytest.raises(InputError, match="configuration"):
        solve_on_data("hyper-cleaning", {}, tmp_path / "a", True, data)


def test_a_run_is_resumed_on_its_own_images_alone(tmp_path, make, tiny_data, monkeypatch):
    import nas_moreau.pipeline as pipeline

    monkeypatch.setattr(pipeline, "load_images", lambda config: tiny_data)
    run_all(make(), tmp_path / "run")
    before = (tmp_path / "run" / "search" / "genotype.json").read_bytes()
    with pytest.raises(InputError, match="retrain"):  # nothing is wrecked by the longer search
        run_all(make("search.epochs=3"), tmp_path / "run", True)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert (tmp_path / "run" / "search" / "genotype.json").read_bytes() == before
    monkeypatch.setattr(pipeline, "load_images", lambda config: with_pixel(tiny_data))
    with pytest.raises(InputError, match="images"):
        run_all(make("retrain.epochs=2"), tmp_path / "run", True)


def test_ranks_with_other_data_or_another_seed_are_refused(tmp_path, monkeypatch):
    for first, part in (({"images": "a"}, "images"), ({"configuration": "b"}, "configuration")):
        monkeypatch.setattr(distributed, "run_on_rank0", lambda work, first=first: first)
        with pytest.raises(InputError, match=f"ank 0.*{part}|{part}.*ank 0") as caught:
            open_folder(tmp_path / "a", {"seed": 1}, "search", False, {"images": "c"})
        assert "same" in caught.value.cure and not (tmp_path / "a").exists()


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_a_cure_and_parts_of_one_side_do_not_count(part):
    refuse_other({part: "a"}, {}, "this", "that")
    refuse_other({}, {part: "a"}, "this", "that")
    with pytest.raises(InputError, match=part) as caught:
        refuse_other({part: "a"}, {part: "b"}, "this", "that")
    assert caught.value.cure


@pytest.mark.parametrize("text", ['{"images": 3}', '{"pictures": "a"}', "[]"])
def test_a_forged_identity_is_one_sentence(text, tmp_path):
    RunFolder.open(tmp_path / "a", {"seed": 1}, "search", False, {"images": "c"}).close()
    os.unlink(tmp_path / "a" / "files.json")
    (tmp_path / "a" / "identity.json").write_text(text)
    with pytest.raises(InputError, match="identity"):
        recorded_identity(tmp_path / "a")


def test_what_changes_bytes_is_named_once(place, make, tiny_data, capsys, monkeypatch):
    assert changes_of_bytes({"threads": 1, "earlier": [{"threads": 1}]}) == ""
    before, now = {"threads": 1, "packages": {"torch": "1"}}, {"threads": 2, "packages": {"torch": "2"}}
    assert changes_of_bytes(now | {"earlier": [before]}) == "threads 1 -> 2, torch 1 -> 2"
    monkeypatch.setattr(folder, "describe_environment", lambda earlier: {"threads": 2, "earlier": [earlier]})
    search(make("search.epochs=3"), place / "search0", True, tiny_data)
    assert "threads 1 -> 2" in capsys.readouterr().err
    assert "threads 1 -> 2" in (place / "search0" / "log.txt").read_text()


def test_a_measurement_is_not_lost_where_the_folder_cannot_be_written_to(place, make, tiny_data, monkeypatch):
    def refuse(*_):
        raise InputError("This folder belongs to somebody else.")

    monkeypatch.setattr("nas_moreau.pipeline.write_recorded", refuse)
    assert readers(place, make)["evaluate a search"](tiny_data).evaluation.samples
