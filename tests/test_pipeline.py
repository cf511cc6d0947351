"""The main job as a function: what it builds, what it returns, and the evaluation of its stages."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from nas_moreau.architecture import load_genotype
from nas_moreau.data import Images, load_data
from nas_moreau.data.resizing import fit_pixels
from nas_moreau.errors import InputError
from nas_moreau.pipeline import RunResult, evaluate_run, run
from nas_moreau.search import stage
from nas_moreau.search.result import SearchResult
from nas_moreau.training import retrain
from nas_moreau.training.loop import Hook
from nas_moreau.training.retrain import RetrainResult

WHOLE = [
    "data.image_size=8",
    "search.epochs=1",
    "retrain.epochs=1",
    "search.steps_per_epoch=1",
    "retrain.steps_per_epoch=1",
    "logging.tensorboard=false",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_config):
    """A finished main job: its configuration, folder, result, and how often each stage was built."""
    folder, built = tmp_path_factory.mktemp("run") / "a", []
    config = tiny_config(*WHOLE)
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((stage, "build_search"), (retrain, "RetrainJob")):
            original = getattr(module, name)
            patch.setattr(module, name, lambda *given, o=original, n=name: (built.append(n), o(*given))[1])
        names = []
        result = run(config, folder, hooks=[Hook(on_start=lambda job: names.append(job.name))])
    assert names == ["search", "retrain"]
    return config, folder, result, built


def test_each_stage_is_built_once(finished):
    assert finished[3] == ["build_search", "RetrainJob"]


def test_the_result_is_what_the_folders_hold(finished):
    config, folder, result, _ = finished
    assert result.to_dict() == json.loads((folder / "result.json").read_text())
    for name, part, kind in (("search", result.search, SearchResult), ("retrain", result.retrain, RetrainResult)):
        stored = json.loads((folder / name / "result.json").read_text())
        assert kind.from_dict(stored) == part and part.to_dict() == stored
    assert result.search.digest == result.retrain.digest
    assert RunResult.from_dict(result.to_dict()) == result == run(config, folder, resume=True)


def test_a_retraining_that_cannot_be_run_is_refused_before_the_search(tmp_path, tiny_config):
    for override in ("retrain.batch_size=9999", "retrain.optimizer=no-such", "retrain.accumulate=3"):
        with pytest.raises(InputError):
            run(tiny_config(*WHOLE, override), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name, split, samples", [("search", "held_out", 400), ("retrain", "test", 1000)])
def test_the_evaluation_of_a_stage_repeats_its_accuracy(name, split, samples, finished):
    config, folder, result, _ = finished
    found = evaluate_run(folder / name, config)
    accuracy = result.search.held_out_accuracy if name == "search" else result.retrain.test_accuracy
    assert found.accuracy == accuracy
    assert found.to_dict() == {"split": split, "accuracy": accuracy, "loss": found.loss, "samples": samples}
    stored = json.loads((folder / name / "evaluation.json").read_text())
    assert stored.items() >= found.to_dict().items() and sum(map(sum, stored["confusion"])) == samples


def test_a_retraining_is_evaluated_on_other_images_with_its_own_classes_and_normalisation(finished, tmp_path, caplog):
    config, folder, result, _ = finished
    own = load_data("shapes", image_size=8)
    before = (folder / "retrain" / "evaluation.json").read_bytes()

    def other(classes, images=slice(None), scale=1):
        pixels = (own.test.pixels[images].permute(0, 2, 3, 1).numpy() * scale).astype(np.uint8)
        labels = np.array(classes)[own.test.labels[images].numpy()]
        np.savez(tmp_path / "a.npz", x_train=255 - pixels, y_train=labels, x_test=pixels, y_test=labels)
        data = config.data.model_copy(update={"name": f"npz:{tmp_path / 'a.npz'}"})
        return evaluate_run(folder / "retrain", config.model_copy(update={"data": data}))

    caplog.set_level(logging.INFO, "nas_moreau")
    found = other(own.classes)  # in another order than that of their names, other statistics
    assert (found.accuracy, found.loss) == (result.retrain.test_accuracy, pytest.approx(evaluated(finished).loss))
    assert "are not those of the training" in caplog.text
    assert (folder / "retrain" / "evaluation.json").read_bytes() == before
    stored = json.loads((folder / "retrain" / "evaluation-other.json").read_text())
    assert stored["accuracy"] == found.accuracy and stored["classes"] == list(own.classes)
    turned = replace(own, test=Images(own.test.pixels.flip(0), own.test.labels))  # others, of the same name
    assert evaluate_run(folder / "retrain", config, turned).to_dict()["samples"] == 1000
    large = own.test.pixels.repeat_interleave(3, 2).repeat_interleave(4, 3)
    sizes = [Images(pixels, own.test.labels) for pixels in (large, fit_pixels(large, 8))]
    losses = [evaluate_run(folder / "retrain", config, replace(own, train=part, test=part)).loss for part in sizes]
    assert losses[0] == losses[1] and "from 32x24 to 8x8" in caplog.text
    two = own.test.labels < 2
    assert other(own.classes, two).to_dict()["samples"] == int(two.sum())
    with pytest.raises(InputError, match=own.classes[0][:-1]) as caught:
        other([own.classes[0][:-1], *own.classes[1:]])
    assert own.classes[0] in caught.value.cure
    with pytest.raises(InputError, match="channels"):
        np.savez(tmp_path / "b.npz", x=np.eye(8)[None].repeat(40, 0), y=np.array(own.classes[:2] * 20))
        data = config.data.model_copy(update={"name": f"npz:{tmp_path / 'b.npz'}"})
        evaluate_run(folder / "retrain", config.model_copy(update={"data": data}))


def evaluated(finished):
    return evaluate_run(finished[1] / "retrain", finished[0])


def test_a_random_search_has_no_weights_to_show(tmp_path, tiny_config, tiny_data):
    config = tiny_config("search.method=random")
    result = stage.search(config, tmp_path / "a", data=tiny_data)
    assert (result.alphas, result.health, result.held_out_accuracy, result.steps) == (None, None, None, 0)
    assert SearchResult.from_dict(result.to_dict()) == result == stage.search(config, tmp_path / "a", resume=True)
    assert load_genotype(str(tmp_path / "a" / "genotype.json")) == result.genotype
