"""A recorded step does what the eager one does, for every method; what cannot be recorded runs eagerly, and says so.

The recorder here repeats operations on the CPU as a graph of a device does: on the same memory, without Python.
"""

import csv
import random
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas_moreau import Choice, search_module
from nas_moreau.architecture import load_space
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.errors import InputError
from nas_moreau.runs.own_checkpoints import own_best
from nas_moreau.search import schedules
from nas_moreau.search.random_cell import random_cell
from nas_moreau.search.stage import plan_search, search
from nas_moreau.training import capture
from nas_moreau.training.finite_guard import tensors_in
from nas_moreau.training.loop import Hook
from nas_moreau.training.retrain import retrain
from nas_moreau.training.signals import NonFinite

CAPTURABLE = sorted(name for name, info in METHODS.items() if info.capturable)
STEPS = 6  # three eager ones, then replays


class Recording(TorchDispatchMode):
    """Notes operations, and what they overwrite that was there before."""

    def __init__(self):
        super().__init__()
        self.operations, self.made, self.saved = [], set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket is torch.ops.aten._local_scalar_dense:
            raise RuntimeError("operation not permitted when a stream is capturing")
        # not by the schema, which does not name all that is written (running statistics)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        before = [(t, t.clone()) for t in given if t.untyped_storage().data_ptr() not in self.made]
        out = func(*args, **kwargs)
        for tensor, copy in before:
            if not torch.equal(tensor, copy):
                place = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape
                self.saved.setdefault(place, (tensor, copy))
        aliases = [returned.alias_info for returned in func._schema.returns]
        if any(alias is not None and not alias.is_write for alias in aliases):
            return out  # a view stays one
        self.operations.append((func, args, kwargs, None if any(aliases) else out))
        self.made |= {t.untyped_storage().data_ptr() for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
        return out


def record(function):
    generator = torch.get_rng_state()
    with Recording() as recording:
        found = function()
    torch.set_rng_state(generator)
    with torch.no_grad():
        for tensor, before in recording.saved.values():
            tensor.copy_(before)

    def replay():
        for func, args, kwargs, out in recording.operations:
            new = func(*args, **kwargs)
            for target, value in zip(tree_leaves(out), tree_leaves(new)):
                if isinstance(target, torch.Tensor):
                    target.copy_(value)

    return found, torch.no_grad()(replay)


def use(monkeypatch, recorder, warm_up=3):
    monkeypatch.setattr(capture, "recorder_of", lambda device: recorder)
    monkeypatch.setattr(capture, "WARM_UP", warm_up)


@pytest.fixture
def job_of(tiny_config, tiny_data, monkeypatch):
    monkeypatch.setattr(schedules, "INNER_STEPS", 2)

    def plan(*overrides):
        return plan_search(tiny_config("search.steps_per_epoch=4", "search.epochs=2", *overrides), tiny_data)

    return plan


def steps(job, count=STEPS):
    """Does steps and returns their losses and norms."""
    numbers = []
    for _ in range(count):
        info = job.train_step()
        numbers += [value.item() for value in (info.F, info.f, *info.norms.values()) if value is not None]
    return numbers


def read_rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def everything(job):
    return [*job.x, *job.y, *tensors_in(job.state), *job.setup.buffers(), *job.sums.values()]


@pytest.mark.parametrize("method", [*CAPTURABLE, "moreau+beta", "darts1+pc", "moreau-lagged adamw"])
def test_replays_give_the_bytes_of_the_same_step_run_eagerly(method, job_of, monkeypatch):
    """And numbers held in tensors change nothing but rounding."""
    method, *weights = method.split()
    rule = "mirror" if method == "moreau" else "adam"
    settings = f"search.method={method}", f"search.alphas.rule={rule}", "search.channels=4", "search.partial_channels=2"
    settings = *settings, *(f"search.weights.rule={name}" for name in weights)
    replays = []

    def counting(function):
        found, replay = record(function)
        return found, lambda: (replays.append(1), replay())

    use(monkeypatch, counting)
    recorded = job_of(*settings)
    numbers = steps(recorded)
    assert len(replays) == STEPS - 3 and recorded.state.k == STEPS
    use(monkeypatch, counting, warm_up=1000)
    eager = job_of(*settings)
    assert steps(eager) == numbers and len(replays) == STEPS - 3
    for a, b in zip(everything(recorded), everything(eager), strict=True):
        assert torch.equal(a, b)
    use(monkeypatch, None)
    plain = job_of(*settings)
    assert steps(plain) == pytest.approx(numbers, rel=1e-3, abs=1e-6) and plain.c == recorded.c
    for a, b in zip([*plain.x, *plain.y], [*recorded.x, *recorded.y], strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_restart_is_recorded_too(job_of, monkeypatch):
    settings = "search.method=moreau", "search.restarts=2", "search.epochs=2"
    found = {}
    for name, warm_up in (("recorded", 3), ("eager", 1000)):
        use(monkeypatch, record, warm_up=warm_up)
        job = job_of(*settings)
        assert job.total_steps == 16
        found[name] = steps(job, 14), job
    assert found["recorded"][0] == found["eager"][0] and found["recorded"][1].state.k == 6
    for a, b in zip(*(everything(job) for _, job in found.values()), strict=True):
        assert torch.equal(a, b)


def test_a_recorded_search_resumes_and_keeps_what_hooks_saw(tiny_config, tiny_data, tmp_path, monkeypatch):
    use(monkeypatch, record)
    settings = ("search.steps_per_epoch=5", "search.epochs=2", "search.method=moreau", "checkpoint.every_steps=3")
    seen = []
    watch = Hook(on_step=lambda job, info: seen.append((job.x[0], job.x[0].clone(), info.f, info.f.item())))
    whole = search(tiny_config(*settings), tmp_path / "whole", data=tiny_data, hooks=[watch])
    assert all(torch.equal(kept, then) and value.item() == number for kept, then, value, number in seen)
    assert len({number for *_, number in seen}) == 10

    def cut(folder):
        def stop(job, info):
            if job.counters.step == 7:
                raise RuntimeError("cut")

        with pytest.raises(RuntimeError, match="cut"):
            search(tiny_config(*settings), tmp_path / folder, data=tiny_data, hooks=[Hook(on_step=stop)])
        return search(tiny_config(*settings), tmp_path / folder, resume=True, data=tiny_data)

    assert cut("cut").genotype == whole.genotype
    assert (tmp_path / "cut/alphas.csv").read_bytes() == (tmp_path / "whole/alphas.csv").read_bytes()
    use(monkeypatch, None)  # from here on where steps cannot be recorded
    assert cut("other").genotype == whole.genotype


@pytest.mark.parametrize("more", [[], ["retrain.mixup=0.2", "retrain.ema=0.9", "retrain.validation=0.2"]])
def test_a_retraining_by_replays_gives_the_same_bytes(more, tiny_config, tiny_data, tmp_path, monkeypatch):
    """Also when learning rate and drop-path change, which are constants of a recording."""
    settings = ["retrain.steps_per_epoch=6", "retrain.epochs=3", "retrain.drop_path=0.3", "retrain.optimizer=momentum"]
    config, cell = tiny_config(*settings, *more), random_cell(load_space("toy"), 0)
    recorded = []

    def counting(function):
        recorded.append(1)
        return record(function)

    use(monkeypatch, counting)
    replayed = retrain(config, cell, tmp_path / "replayed", data=tiny_data)
    assert len(recorded) == 3  # once an epoch
    use(monkeypatch, None)
    eager = retrain(config, cell, tmp_path / "eager", data=tiny_data)
    assert replayed.test_accuracy == eager.test_accuracy
    losses = [
        [row["train_loss"] for row in read_rows(tmp_path / name / "metrics.csv")] for name in ("replayed", "eager")
    ]
    assert losses[0] == losses[1]
    weights = [own_best(tmp_path / name)["model"] for name in ("replayed", "eager")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def test_a_number_that_is_not_finite_is_found_by_a_replay(job_of, monkeypatch):
    use(monkeypatch, record)
    job = job_of("search.method=moreau")
    job.guard.every_step = False  # as on an accelerator
    steps(job, 5)
    before = [t.clone() for t in job.y]
    lower = job.setup.lower

    class Broken:
        purpose = lower.purpose

        def batch(self, step):
            pixels, labels = lower.batch(step)
            return pixels * float("inf"), labels

    whole = job.setup
    monkeypatch.setattr(job, "setup", type("Setup", (), {"__getattr__": lambda self, name: getattr(whole, name)})())
    job.setup.batches = lambda step: (whole.batch(whole.upper, step), whole.batch(Broken(), step))
    steps(job, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, job.y))
    with pytest.raises(NonFinite, match="step 6"):
        job.guard.read()


def test_what_python_changes_from_step_to_step_is_not_recorded(monkeypatch):
    """A number that a user's code counts up on the host would stay what it was in the recording."""
    calls, notes = [0], []

    def step(state, inputs):
        calls[0] += 1
        return [state[0] + inputs[0] * (calls[0] if counting else 2)], inputs[0] + 1

    for counting in (True, False):
        calls[0], total, shown = 0, torch.zeros(2), [torch.zeros(2)]
        captured = capture.CapturedStep(step, torch.device("cpu"), record, notes.append)
        for k in range(8):
            given = torch.full((2,), float(k))
            shown, out = captured(shown, [given])
            total = total + given * (calls[0] if counting else 2)
            assert torch.equal(shown[0], total) and torch.equal(out, given + 1)
        assert calls[0] == (8 if counting else capture.WARM_UP + 1)
    assert len(notes) == 2 and notes[0] != notes[1]


def test_what_cannot_be_recorded_runs_eagerly(job_of, monkeypatch):
    """A recording that fails, draws on the host, methods that wait; and capture=on refuses them."""
    notes = []

    def failing(function):
        raise RuntimeError("operation not permitted")

    def drawing(function):
        random.random()
        return record(function)

    use(monkeypatch, None)
    plain = steps(job_of())
    for recorder in (failing, drawing):
        use(monkeypatch, recorder)
        job = job_of()
        monkeypatch.setattr(job, "_note", notes.append)
        monkeypatch.setattr(job.advance, "_note", notes.append)
        state = random.getstate()
        assert steps(job) == pytest.approx(plain, rel=1e-3)
        assert random.getstate() == state
    assert len(notes) == 2
    use(monkeypatch, record)
    assert job_of("search.method=gdas").held is None
    assert job_of("performance.capture=off").held is None
    for settings in (["search.method=gdas"], ["performance.activation_checkpointing=true"]):
        with pytest.raises(InputError):
            job_of("performance.capture=on", *settings)
    use(monkeypatch, None)
    with pytest.raises(InputError):
        job_of("performance.capture=on")


def test_batches_that_a_recording_does_not_know_run_eagerly():
    """Objects whose tensors are hidden, plain values that change, other keys: not those of the recorded step."""

    def step(state, inputs):
        part = inputs["part"]
        value = part if isinstance(part, torch.Tensor) else part.data["x"]
        return [state[0] + value * inputs.get("factor", 2.0)], value + 1

    def given(kind, k):
        x = torch.full((2,), float(k))
        hidden = UserDict(x=x)
        return {
            "objects": {"part": hidden},
            "numbers": {"part": x, "factor": float(k % 5)},
            "texts": {"part": x, "name": str(k)},
            "keys": {"part": x, "factor": 3.0} if k % 2 else {"part": x, "other": 3.0},
            "sizes": {"part": x[: 1 + k % 2]},
        }[kind]

    for kind in ("objects", "numbers", "texts", "keys", "sizes"):
        notes, total, state = [], torch.zeros(2), [torch.zeros(2)]
        captured = capture.CapturedStep(step, torch.device("cpu"), record, notes.append)
        for k in range(9):
            inputs = given(kind, k)
            (total,), out = step([total], inputs)
            state, found = captured(state, inputs)
            assert torch.equal(state[0], total) and torch.equal(found, out), (kind, k)
        assert notes


class Remembering(nn.Module):
    """Keeps a running mean in a plain attribute, as a tensor that is another one after every call."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(6)

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x.mean(0).detach()
        return x - self.mean


def test_a_search_in_a_module_is_recorded_as_it_is_eager(monkeypatch):
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    replays = []

    def counting(function):
        found, replay = record(function)
        return found, lambda: (replays.append(1), replay())

    def weights(centre, collate):
        torch.manual_seed(0)
        options = Choice({"tanh": nn.Tanh(), "relu": nn.ReLU()})
        net = nn.Sequential(nn.Linear(4, 6), centre, options, nn.Linear(6, 1))
        loader = torch.utils.data.DataLoader([{"x": row, "y": row[:1].tanh()} for row in x], 8, collate_fn=collate)
        found = search_module(
            net, lambda net, batch: (net(batch["x"]) - batch["y"]).square().mean(), loader, steps=8, device="cpu"
        )
        return found.weights, found.result.held_out

    def hidden(rows):
        return UserDict(torch.utils.data.default_collate(rows))

    for centre, collate, recorded in (
        (nn.Identity, None, True),
        (nn.Identity, hidden, False),
        (Remembering, None, False),
    ):
        replays.clear()
        use(monkeypatch, counting)
        found = weights(centre(), collate)
        assert bool(replays) == recorded
        use(monkeypatch, counting, warm_up=1000)
        assert found == weights(centre(), collate)
