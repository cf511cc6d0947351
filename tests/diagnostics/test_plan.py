"""What a run will take: counts and totals by hand, proposals that fit, refusals. No test asserts a time."""

import pytest

from nas_moreau.architecture import load_genotype, load_space
from nas_moreau.config import load_config
from nas_moreau.diagnostics import plan as stage
from nas_moreau.diagnostics import plan_probe
from nas_moreau.diagnostics.plan import Cost, changed, parse_memory, plan
from nas_moreau.errors import InputError
from nas_moreau.search.random_cell import random_cell
from nas_moreau.training.loop import Hook
from nas_moreau.training.retrain import retrain

TINY = [
    "space=toy",
    "search.channels=2",
    "search.layers=3",
    "search.epochs=3",
    "search.steps_per_epoch=7",
    "search.batch_size=8",
    "search.image_size=8",
    "search.augment.crop=1",
    "retrain.channels=4",
    "retrain.layers=3",
    "retrain.epochs=5",
    "retrain.steps_per_epoch=6",
    "retrain.batch_size=8",
    "retrain.auxiliary=false",
    "data.image_size=8",
]


def tiny(*overrides):
    return load_config(overrides=[*TINY, *overrides])


def total(found):
    """The hours again, out of what they are said to come from."""
    once = found["begin_seconds"] + found["final_seconds"]
    counted = [
        ("steps", "step_seconds"),
        ("epochs", "epoch_end_seconds"),
        ("evaluated_images", "image_seconds"),
        ("derived_cell_images", "derived_cell_image_seconds"),
    ]
    return (once + sum(found[count] * found[each] for count, each in counted)) / 3600


def test_a_search_is_counted_in_full():
    found = plan_probe.probe("search", tiny(), None, 0.0)
    assert found["steps"] == 21 and found["evaluated_images"] == 4 * 400  # three epochs and the end, a tenth of 4,000
    # at every epoch's end the derived cell is measured too
    assert found["derived_cell_images"] == 3 * 400 and found["derived_cell_image_seconds"] > 0
    assert found["measured_steps"] == plan_probe.MIN_STEPS
    assert found["hours"] == pytest.approx(total(found))
    assert found["memory_bytes"] > 100e6


# keys, images evaluated: 1,000 test images at the end and where an epoch's end looks at them, or the validation part
RETRAININGS = [
    ([], 2 * 1000),
    (["retrain.evaluate_every=2"], 4 * 1000),
    (["retrain.evaluate_every=5"], 2 * 1000),
    (["retrain.evaluate_every=0"], 2 * 1000),
    (["retrain.validation=0.1"], 5 * 400 + 1000),
    (["retrain.epochs=1", "retrain.evaluate_every=1"], 2 * 1000),
    # steps are tried past the last of six epochs of one step, where drop-path must stay a probability
    (["retrain.epochs=6", "retrain.steps_per_epoch=1", "retrain.drop_path=0.5", "retrain.evaluate_every=0"], 2 * 1000),
]


@pytest.mark.parametrize("overrides, images", RETRAININGS)
def test_a_retraining_is_counted_in_full(overrides, images):
    config = tiny(*overrides)
    genotype = load_genotype("DARTS_V2")
    found = plan_probe.probe("retrain", config, genotype, 0.0)
    assert (
        found["steps"] == (config.retrain.steps_per_epoch or 6) * config.retrain.epochs
        and found["evaluated_images"] == images
    )
    assert found["digest"] == genotype.digest()
    assert found["hours"] == pytest.approx(total(found)) and found["epochs"] == config.retrain.epochs


def test_the_count_of_evaluated_images_is_that_of_a_real_retraining(tmp_path):
    for number, (overrides, images) in enumerate([RETRAININGS[1], RETRAININGS[4]]):
        counted = []
        hook = Hook(on_evaluate=lambda job, name, samples, seconds, counted=counted: counted.append(samples))
        retrain(tiny(*overrides), load_genotype("DARTS_V2"), tmp_path / str(number), hooks=[hook])
        assert sum(counted) == images


def test_random_search_takes_nothing_and_random_cells_stand_for_unknown_ones():
    assert plan_probe.probe("search", tiny("search.method=random"), None, 0.0)["hours"] == 0
    found = plan_probe.probe("retrain", tiny(), None, 0.0)
    assert found["digest"] == random_cell(load_space("toy"), 0).digest()


@pytest.mark.slow
def test_a_process_of_its_own_answers_and_what_the_stage_refuses_is_refused(monkeypatch):
    monkeypatch.setattr(stage, "SECONDS", 0.0)
    result = plan(tiny(), load_genotype("DARTS_V2"))
    assert result.proposals == [] and result.search.measured["steps"] == 21
    # its memory is its own: this process holds the same libraries and more
    assert 100e6 < result.search.memory_bytes < 4e9
    with pytest.raises(InputError, match="small"):
        plan(tiny("search.image_size=4"))


def fake(monkeypatch, cost):
    """Puts `cost(stage, config) -> (memory, hours)` in the place of measuring."""
    tried = []

    def probe(which, config, genotype, imports):
        tried.append(which)
        found = cost(which, config)
        return Cost(None, None) if found is None else Cost(*found)

    monkeypatch.setattr(stage, "measure_stage", probe)
    return tried


def by_size(which, config):
    settings = config.search if which == "search" else config.retrain
    order = 2 if settings is config.search and settings.method == "moreau-gauss-seidel" else 1
    return settings.batch_size * settings.channels * 1_000_000, settings.epochs * settings.channels * order / 100


def test_what_fits_needs_no_proposals(monkeypatch):
    tried = fake(monkeypatch, by_size)
    result = plan(load_config(), memory=10**10, hours=1e6)
    assert result.proposals == [] and tried == ["search", "retrain"]


def test_too_much_memory_gives_the_mildest_changes_that_fit(monkeypatch):
    fake(monkeypatch, by_size)
    config = load_config()  # search: batch 64, 16 channels; retrain: batch 96, 36 channels
    result = plan(config, memory=600_000_000)
    rows = [(row.stage, row.change, row.fits) for row in result.proposals]
    assert rows == [
        ("search", ["search.batch_size=32"], True),
        ("search", ["search.batch_size=16"], True),
        ("retrain", ["retrain.batch_size=48"], False),
        ("retrain", ["retrain.batch_size=24"], False),
        ("retrain", ["retrain.channels=18"], False),
        ("retrain", ["retrain.channels=18", "retrain.batch_size=48"], False),
        ("retrain", ["retrain.layers=10"], False),
    ]
    for row in result.proposals:
        settings = getattr(changed(config, row.change), row.stage)
        assert row.memory_bytes == settings.batch_size * settings.channels * 1_000_000
        assert row.fits == (row.memory_bytes <= 600_000_000)


def test_too_many_hours_give_a_cheaper_order_fewer_channels_and_fewer_epochs(monkeypatch):
    fake(monkeypatch, by_size)
    config = load_config(overrides=["search.method=moreau-gauss-seidel"])
    base = plan(config)
    hours = base.search.hours + base.retrain.hours
    result = plan(config, hours=0.601 * hours)
    changes = {row.change[0]: row for row in result.proposals}
    assert "search.method=moreau" in changes and not changes["search.method=moreau"].fits
    assert changes["retrain.channels=18"].fits
    last = result.proposals[-1]
    assert last.change == ["search.epochs=30", "retrain.epochs=360"] and last.fits
    assert last.hours == pytest.approx(0.6 * hours)


def test_a_machine_without_the_memory_to_try_says_so(monkeypatch):
    fake(
        monkeypatch, lambda which, config: None if config.retrain.batch_size == 96 and which == "retrain" else (1, 1.0)
    )
    result = plan(load_config())
    assert result.to_dict()["retrain"] == {"memory_bytes": None, "hours": None}
    assert result.proposals[0].change == ["retrain.batch_size=48"] and result.proposals[0].fits


@pytest.mark.parametrize(
    "text, amount",
    [
        ("11GB", 11 * 10**9),
        ("8GiB", 8 * 2**30),
        ("0.5 gb", 5 * 10**8),
        ("512MB", 512 * 10**6),
        ("12345678", 12345678),
    ],
)
def test_amounts_of_memory(text, amount):
    assert parse_memory(text) == amount


@pytest.mark.parametrize("text", ["", "GB", "11XB", "-1GB", "0", "1e3", "nan"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(InputError, match="memory"):
        parse_memory(text)


def test_the_benchmark_reckons_a_long_stage_from_two_short_runs(monkeypatch, script_of):
    script = script_of("benchmark_plan")

    def ask(overrides, **request):  # 7 s, 0.25 s a step, three times as much on the wall
        search = load_config("cpu", None, overrides).search
        steps = search.steps_per_epoch * search.all_epochs
        return {"cpu": 7 + steps / 4, "wall": 21 + 0.75 * steps, "memory": 5, "genotype": None}

    monkeypatch.setattr(script, "ask", ask)
    found = script.truth("cpu", "search", [], None, full=False)
    assert found == {"cpu": 7 + 80 / 4, "wall": 21 + 0.75 * 80, "memory": 5, "genotype": None}
    assert script.truth("cpu", "search", [], None, full=True) == found
