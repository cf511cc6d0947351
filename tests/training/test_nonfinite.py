"""The finite flag: what it sees, what it keeps, when it waits; rollbacks with halved step sizes."""

import json
from typing import NamedTuple

import pytest
import torch

from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.runs import load_checkpoint
from nas_moreau.runs.tables import read_table
from nas_moreau.search.schedules import smaller_steps
from nas_moreau.search.stage import search
from nas_moreau.training.evaluate import EvaluateResult, Evaluation
from nas_moreau.training.finite_guard import FiniteGuard, keep, select
from nas_moreau.training.loop import Hook
from nas_moreau.training.retrain import retrain
from nas_moreau.training.signals import NonFinite

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")
SETTINGS = [
    "retrain.epochs=3",
    "retrain.augment.cutout=0",
    "logging.tensorboard=false",
    "checkpoint.on_nonfinite=rollback",
]


@pytest.fixture
def config(tiny_config):
    return lambda *overrides: tiny_config(*SETTINGS, *overrides)


class State(NamedTuple):
    theta: list
    k: int
    rule: tuple


def test_select_is_exact_for_every_bit_pattern():
    draw = torch.Generator().manual_seed(1)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool):
        wide = torch.randint(0, 256, (2, 4096), generator=draw, dtype=torch.uint8)
        old, new = (wide % 2 if dtype is torch.bool else wide).view(dtype)  # NaN of all kinds among the floats
        for sound in (True, False):
            (chosen,) = select(torch.tensor(sound), [new], [old])
            expected = new if sound else old
            assert chosen.dtype == dtype and torch.equal(chosen.view(torch.uint8), expected.view(torch.uint8))


def test_keep_takes_tensors_from_the_old_state_and_keeps_strides():
    layout = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    old = State([layout, torch.zeros(2)], 3, (torch.ones(1), []))
    new = State([torch.full_like(layout, NAN), torch.ones(2)], 4, (torch.zeros(1), [torch.ones(1)]))
    kept = keep(torch.tensor(False), new, old)
    assert type(kept) is State and torch.equal(kept.theta[0], layout) and kept.theta[0].stride() == layout.stride()
    assert kept.rule[0].item() == 1 and kept.rule[1][0].item() == 1  # which had no value before
    assert torch.equal(keep(torch.tensor(True), new, old).theta[1], torch.ones(2))


def flag_down_at(step, every_step):
    """Ten steps of a counter that becomes infinite at `step`; what is kept, and the message."""
    guard = FiniteGuard("search", CPU, lambda k: 0.5**k, every_step)
    value, written = [torch.zeros(3)], torch.zeros(3)
    for k in range(1, 11):
        guard.before(lambda written=written: [written])
        bad = k == step
        written += NAN if bad else 1
        new = [value[0] + (INF if bad else 1)]
        value = guard.after(k, {"F": torch.tensor(1.0)}, {"weights": new, "none": []}, new, value)
    with pytest.raises(NonFinite) as caught:
        guard.read()
    return value[0].tolist(), written.tolist(), str(caught.value)


@pytest.mark.parametrize("step", [1, 2, 7, 10])
def test_on_an_accelerator_everything_stays_as_it_was_before_the_step(step):
    value, written, message = flag_down_at(step, every_step=False)
    assert value == [step - 1.0] * 3 and written == [step - 1.0] * 3
    assert f"at step {step} (learning rate {0.5 ** (step - 1):.3g}): weights;" in message
    assert "search.weights.lr" in message and "--on-nonfinite rollback" in message


def test_on_the_cpu_the_step_itself_raises():
    with pytest.raises(NonFinite, match=r"at step 4 \(learning rate 0.125\): F"):
        guard = FiniteGuard("retrain", CPU, lambda k: 0.5**k)
        guard.after(3, {"F": torch.tensor(1.0)}, {})
        guard.after(4, {"F": torch.tensor(NAN)}, {})


def test_large_sums_of_half_precision_are_no_fault():
    guard = FiniteGuard("search", torch.device("cpu"), None)
    guard.after(1, {}, {"weights": [torch.full((4096, 64), 0.5, dtype=torch.float16)]})
    with pytest.raises(NonFinite):
        guard.after(2, {}, {"weights": [torch.tensor([torch.inf], dtype=torch.float16)]})


def test_a_guard_that_may_not_wait_never_does():
    """`meta` tensors have no values: any look at one would raise."""
    guard = FiniteGuard("search", torch.device("meta"), lambda k: 1.0)
    old = State([torch.empty(3, device="meta")], 0, ())
    for k in range(1, 4):
        guard.before(lambda: old.theta)
        new = State([torch.empty(3, device="meta")], k, ())
        kept = guard.after(k, {"F": torch.empty((), device="meta")}, {"y": new}, new, old)
        assert kept.k == k and kept.theta[0].is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        guard.read()


# --- the stages ------------------------------------------------------------------------------------------------------


def poison_search(steps, times=None):
    """A hook that makes f infinite at the given steps (counted from 1), in the first `times` attempts at each."""
    left = {step: times if times is not None else 10**9 for step in steps}

    def poison(job):
        if left.get(job.counters.step + 1, 0) > 0:
            left[job.counters.step + 1] -= 1
            job.y = [job.y[0] * INF, *job.y[1:]]

    return Hook(before_step=poison)


def test_a_search_goes_back_with_halved_steps_and_a_resumed_one_keeps_them(tmp_path, config, tiny_data):
    settings = config("search.weights.lr=0.04")
    search(settings, tmp_path / "a", data=tiny_data, hooks=[poison_search([4], times=1)])
    payload = load_checkpoint(tmp_path / "a" / "checkpoints")[0]
    assert payload["counters"]["rollbacks"] == 1 and payload["counters"]["step"] == 6
    rates = [float(row["weights_lr"]) for row in read_table(tmp_path / "a" / "metrics.csv")]
    assert rates[0] == 0.04 and rates[1] == pytest.approx(0.5 * (0.001 + 0.5 * 0.039 * 1.5))
    log = (tmp_path / "a" / "log.txt").read_text()
    assert "at step 4" in log and "to step 2" in log

    # the same, stopped after the rollback and resumed in a process that never saw the fault
    def stop(job, row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(settings, tmp_path / "b", data=tiny_data, hooks=[poison_search([4], times=1), Hook(on_epoch=stop)])
    assert json.loads((tmp_path / "b" / "status.json").read_text())["state"] == "interrupted"
    search(settings, tmp_path / "b", resume=True, data=tiny_data)
    other = load_checkpoint(tmp_path / "b" / "checkpoints")[0]
    assert other["counters"]["rollbacks"] == 1
    assert all(torch.equal(a, b) for key in ("x", "y") for a, b in zip(payload[key], other[key]))


def test_a_search_without_a_checkpoint_goes_back_to_its_start(tmp_path, config, tiny_data):
    result = search(config(), tmp_path / "a", data=tiny_data, hooks=[poison_search([1], times=2)])
    rollbacks = load_checkpoint(tmp_path / "a" / "checkpoints")[0]["counters"]["rollbacks"]
    assert result.steps == 6 and rollbacks == 2


def test_three_rollbacks_are_the_most_and_what_was_saved_is_sound(tmp_path, config, tiny_data):
    with pytest.raises(NonFinite, match=r"at step 4.*3 times"):
        search(config(), tmp_path / "a", data=tiny_data, hooks=[poison_search([4])])
    payload = load_checkpoint(tmp_path / "a" / "checkpoints")[0]
    assert payload["counters"]["step"] == 2 and all(t.isfinite().all() for t in payload["y"])
    assert json.loads((tmp_path / "a" / "status.json").read_text())["state"] == "failed"


def test_without_the_option_the_first_fault_ends_the_run(tmp_path, config, tiny_data):
    with pytest.raises(NonFinite, match="at step 4"):
        search(config("checkpoint.on_nonfinite=stop"), tmp_path / "a", data=tiny_data, hooks=[poison_search([4], 1)])
    # and the option may be given on resuming
    search(config(), tmp_path / "a", resume=True, data=tiny_data)


def test_smaller_steps_halve_every_step_size_and_nothing_else(config):
    settings = config("search.moreau.theta_lr=0.01", "search.moreau.weights_lr=0.02").search
    half = smaller_steps(settings, 0.5)
    assert (half.weights.lr, half.weights.lr_min) == (settings.weights.lr / 2, settings.weights.lr_min / 2)
    assert (half.alphas.lr, half.moreau.theta_lr, half.moreau.weights_lr) == (settings.alphas.lr / 2, 0.005, 0.01)
    assert half.weights.momentum == settings.weights.momentum and half.alphas.betas == settings.alphas.betas
    assert smaller_steps(config().search, 0.5).moreau.theta_lr is None


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_retraining_goes_back_with_halved_steps(ema, tmp_path, config, tiny_data):
    left = [2]

    def poison(job):
        if job.counters.step == 3 and left[0]:
            left[0] -= 1
            next(job.trainer.network.parameters()).data.mul_(INF)

    settings, hooks = config(f"retrain.ema={ema}"), [Hook(before_step=poison)]
    retrain(settings, published_cell("DARTS_V2"), tmp_path / "a", data=tiny_data, hooks=hooks)
    rates = [float(row["lr"]) for row in read_table(tmp_path / "a" / "metrics.csv")]
    assert rates == pytest.approx([0.025, 0.25 * 0.025 * 0.75, 0.25 * 0.025 * 0.25])
    payload = load_checkpoint(tmp_path / "a" / "checkpoints")[0]
    assert payload["counters"]["rollbacks"] == 2 and all(t.isfinite().all() for t in payload["model"].values())


def test_an_evaluation_that_is_not_finite_is_json():
    result = EvaluateResult("test", Evaluation(float("nan"), 0.5, [[1, 0], [1, 0]], 2), ("a", "b"))
    found = json.loads(result.file(), parse_constant=pytest.fail)
    assert found["loss"] is None and found["accuracy"] == 0.5
