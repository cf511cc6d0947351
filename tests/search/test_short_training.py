"""The last stage by short training: candidates, successive halving against plain trainings, stops, costs."""

from collections import Counter

import pytest
import torch

from nas_moreau.architecture import AlphaTable, derive, load_space
from nas_moreau.data.batches import Batches, RetrainImages, search_parts
from nas_moreau.diagnostics.plan_probe import probe
from nas_moreau.search import search, short_training
from nas_moreau.search.short_training import Place, draw_cells, rounds, short_config, total_steps, train_and_choose
from nas_moreau.training.evaluate import evaluate_model
from nas_moreau.training.recipe import build_network
from nas_moreau.training.signals import Interrupted, StopTraining
from nas_moreau.training.trainer import Trainer

SHORT = [f"derive.trained.{word}" for word in ("candidates=5", "steps=8", "channels=2", "batch_size=8")]


@pytest.fixture
def config(tiny_config):
    return tiny_config("search.method=darts1", "search.epochs=1", "derive.rule=trained", "retrain.layers=2", *SHORT)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        (1, [(1, 64)]),
        (2, [(2, 64)]),
        (5, [(5, 16), (3, 32), (2, 64)]),
        (16, [(16, 8), (8, 16), (4, 32), (2, 64)]),
    ],
)
def test_half_of_the_candidates_go_on_for_twice_the_steps(candidates, expected, tiny_config):
    config = tiny_config(f"derive.trained.candidates={candidates}", "derive.trained.steps=64")
    assert rounds(config) == expected
    trained = [0] * candidates
    for count, steps in expected:
        trained[:count] = [steps] * count
    assert total_steps(config) == sum(trained)


@pytest.mark.parametrize("space", ["nas_bench_201", "darts", "robust_darts_s1"])
def test_candidates_are_distinct_cells_of_the_space_and_begin_with_the_derived_one(space):
    space = load_space(space)
    table = AlphaTable.uniform(space)
    first = derive(space, table)
    cells = draw_cells(space, table, first, 12, seed=3)
    assert len({cell.digest() for cell in cells}) == len(cells) == 12 and cells[0] == first
    for cell in cells:
        space.check(cell)
    assert [cell.digest() for cell in draw_cells(space, table, first, 12, seed=3)] == [cell.digest() for cell in cells]
    assert len(draw_cells(space, table, first, 12, 3, allowed=lambda cell: False)) == 1


def test_an_operation_is_drawn_with_the_probability_of_its_weight():
    space = load_space("nas_bench_201")
    weights = torch.tensor([0.4, 0.1, 0.2, 0.25, 0.05]).log().repeat(6, 1)
    table = AlphaTable.from_logits(space, {"cell": weights})
    drawn = draw_cells(space, table, derive(space, table), 400, seed=0)
    # distinct cells come once each: their number grows by the weights all the same, so compare on one edge by rank
    counts = Counter(cell.cells["cell"].edges[0][0] for cell in drawn)
    order = [name for name, _ in counts.most_common()]
    assert order == ["none", "nor_conv_3x3", "nor_conv_1x1", "skip_connect", "avg_pool_3x3"]


def trained_alone(config, cell, parts, steps):
    """The loss, after a number of steps of a literal training, of the weights' moving average."""
    recipe = short_config(config)
    trainer = Trainer(recipe, build_network(recipe, cell, 3, 3), 3, torch.device("cpu"))
    last = config.performance.channels_last
    batches = Batches(parts.weights, recipe.retrain.batch_size, config.seed, "short training", channels_last=last)
    images = RetrainImages(batches, [batches], parts.architecture, parts.architecture)
    average = None
    for step in range(steps):
        trainer.scheduler.step(step // recipe.retrain.steps_per_epoch)
        average = average or [tensor.clone() for tensor in trainer.network.state_dict().values()]
        trainer.step(images, step, 0.0)
        for mean, tensor in zip(average, trainer.network.state_dict().values()):
            if mean.is_floating_point():
                mean.lerp_(tensor, 1 - recipe.retrain.ema)
            else:
                mean.copy_(tensor)
    trainer.network.load_state_dict(dict(zip(trainer.network.state_dict(), average)))
    return evaluate_model(trainer.network, parts.architecture, 3, channels_last=last).loss


def test_the_choice_is_that_of_plain_trainings(config, tiny_data):
    """Every candidate trained alone to the steps of each round; the same losses, the same cells go on."""
    trained = config.derive.trained.model_copy(update={"steps": 24})
    config = config.model_copy(update={"derive": config.derive.model_copy(update={"trained": trained})})
    assert short_config(config).retrain.ema > 0
    parts = search_parts(config, tiny_data, torch.device("cpu"))
    space = load_space(config.space)
    table = AlphaTable.uniform(space)
    cells = draw_cells(space, table, derive(space, table), 5, seed=0)
    chosen, record = train_and_choose(config, cells, 3, 3, parts.architecture, Place(parts.weights))
    left = cells
    for row in record["rounds"]:
        alone = {cell.digest(): trained_alone(config, cell, parts, row["steps"]) for cell in left}
        assert {c["digest"]: c["loss"] for c in row["candidates"]} == pytest.approx(alone, rel=1e-4)
        order = [c["digest"] for c in row["candidates"]]
        losses = [c["loss"] for c in row["candidates"]]
        assert losses == sorted(losses)
        left = [cell for cell in left if cell.digest() in order[: -(-len(order) // 2)]]
    assert chosen.digest() == record["rounds"][-1]["candidates"][0]["digest"]
    assert [len(row["candidates"]) for row in record["rounds"]] == [5, 3, 2]


@pytest.mark.parametrize("saving", [True, False])
def test_no_step_is_done_twice(saving, config, tiny_data, tmp_path):
    parts = search_parts(config, tiny_data, torch.device("cpu"))
    space = load_space(config.space)
    table = AlphaTable.uniform(space)
    cells = draw_cells(space, table, derive(space, table), 5, seed=0)
    done, original = [], short_training.Trainer.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short_training.Trainer, "step", lambda self, *args: done.append(original(self, *args)))
        place = Place(parts.weights, tmp_path / "derivation" if saving else None)
        train_and_choose(config, cells, 3, 3, parts.architecture, place)
    assert len(done) == total_steps(config) == 5 * 2 + 3 * 2 + 2 * 4


def test_a_stop_at_any_step_changes_nothing(config, tiny_data, tmp_path):
    parts = search_parts(config, tiny_data, torch.device("cpu"))
    space = load_space(config.space)
    table = AlphaTable.uniform(space)
    cells = draw_cells(space, table, derive(space, table), 3, seed=0)
    whole = train_and_choose(config, cells, 3, 3, parts.architecture, Place(parts.weights))
    folder, stops = tmp_path / "derivation", 0

    for _ in range(100):
        calls = 0

        def check():
            nonlocal calls
            calls += 1
            if calls == 4:
                raise StopTraining

        try:
            resumed = train_and_choose(config, cells, 3, 3, parts.architecture, Place(parts.weights, folder, check))
        except StopTraining:
            stops += 1
            continue
        break
    assert stops > 3 and resumed == whole and not folder.exists()


def test_a_search_that_is_stopped_in_its_last_stage_goes_on_there(config, tiny_data, tmp_path, monkeypatch):
    whole = search(config, tmp_path / "whole", data=tiny_data).to_dict()
    original, calls = short_training.build_network, []

    def stopping(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            import signal

            signal.raise_signal(signal.SIGTERM)
        return original(*args, **options)

    monkeypatch.setattr(short_training, "build_network", stopping)
    with pytest.raises(Interrupted):
        search(config, tmp_path / "parts", data=tiny_data)
    assert (tmp_path / "parts" / "derivation").exists()
    found = search(config, tmp_path / "parts", resume=True, data=tiny_data).to_dict()
    assert found["derived_by"] == whole["derived_by"] and found["digest"] == whole["digest"]
    assert whole["derived_by"]["rounds"][0]["candidates"] and not (tmp_path / "parts" / "derivation").exists()


def test_plan_counts_the_last_stage(config, tmp_path):
    import numpy as np

    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    config = config.model_copy(update={"data": config.data.model_copy(update={"name": f"npz:{tmp_path / 'data.npz'}"})})
    space = config.model_copy(update={"derive": config.derive.model_copy(update={"rule": "space"})})
    with_stage, without = (probe("search", c, None, 0.01) for c in (config, space))
    assert with_stage["final_seconds"] > without["final_seconds"]
    assert short_config(config).retrain.channels == 2
