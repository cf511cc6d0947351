"""The `performance` section: what it sets, what it refuses, and that results agree up to rounding."""

import contextlib
import functools
import json
import shutil
import threading

import pytest
import torch

from nas_moreau.architecture import Genotype, Network, Supernet, load_space, published_cell
from nas_moreau.architecture.networks.network import drop_path
from nas_moreau.bilevel import moreau
from nas_moreau.compare.protocol import compare
from nas_moreau.config import PerformanceConfig, SearchConfig
from nas_moreau.errors import InputError
from nas_moreau.pipeline import run
from nas_moreau.runs import load_checkpoint
from nas_moreau.search.methods import build_method
from nas_moreau.search.stage import search
from nas_moreau.search.supernet_problem import Batch, supernet_problem
from nas_moreau.training.device import set_up_torch
from nas_moreau.training.loop import Hook
from nas_moreau.training.retrain import plan_retraining, retrain
from nas_moreau.training.signals import Interrupted, NonFinite

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")
CELL = published_cell("DARTS_V2")
SMALL_CELL = Genotype.from_json(
    json.dumps(
        {
            "version": 1,
            "space": "darts",
            "cells": {
                name: {"edges": [["sep_conv_3x3", 0, 2], ["skip_connect", 1, 2]], "concat": [2]}
                for name in ("normal", "reduce")
            },
        }
    )
)
SETTINGS = ["space=darts", "search.epochs=1", "retrain.drop_path=0"]


@pytest.fixture
def tiny(tiny_config):
    return lambda *overrides: tiny_config(*SETTINGS, *overrides)


# --- what is set -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, device, expected",
    [
        ("auto", CPU, False),
        ("auto", ELSEWHERE, True),
        (True, CPU, True),
        (False, ELSEWHERE, False),
    ],
)
def test_tf32_is_auto_by_device_and_holds_for_products_and_convolutions(given, device, expected):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        set_up_torch(PerformanceConfig(tf32=given), device)
        assert torch.get_float32_matmul_precision() == ("high" if expected else "highest")
        assert torch.backends.cudnn.allow_tf32 is expected
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("refused", [None, "search", "run", "compare"])
def test_a_stage_leaves_torch_as_the_caller_had_it(tmp_path, refused, tiny, tiny_data):
    """A notebook's next cell must not be left with the threads of the last search."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    try:
        config = tiny("performance.threads=1", "performance.tf32=false", "data.name=shapes")
        if refused:
            (tmp_path / "something").touch()  # a folder that is not empty is refused after torch was set up
        with pytest.raises(InputError) if refused else contextlib.nullcontext():
            if refused == "run":
                run(config, tmp_path)
            elif refused == "compare":
                compare(config, {"darts1": (0,)}, tmp_path)
            else:
                search(config, tmp_path, data=tiny_data)
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "high")
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


@pytest.mark.slow
def test_a_second_thread_is_refused_and_changes_nothing(tmp_path, tiny, tiny_data):
    """Random numbers belong to the process: two searches of one seed at the same time would find other cells."""
    config, refused = tiny("search.epochs=1"), []

    def search_too():
        try:
            search(config, tmp_path / "second", data=tiny_data)
        except InputError as error:
            refused.append(error)

    def from_another_thread(job):
        thread = threading.Thread(target=search_too)
        thread.start()
        thread.join()

    alone = search(config, tmp_path / "alone", data=tiny_data)
    first = search(config, tmp_path / "first", data=tiny_data, hooks=[Hook(on_start=from_another_thread)])
    assert len(refused) == 1 and "process" in refused[0].cure and not (tmp_path / "second").exists()
    assert first.digest == alone.digest and first.alphas == alone.alphas
    search_too()
    assert len(refused) == 1 and (tmp_path / "second" / "result.json").exists()


def test_defaults_are_those_that_change_no_result_on_a_cpu():
    section = PerformanceConfig()
    assert (section.precision, section.tf32, section.compile, section.channels_last) == ("float32", "auto", False, True)


@pytest.mark.parametrize("override", ["performance.precision=half", "performance.tf32=sometimes"])
def test_unknown_values_are_refused(override, tiny):
    with pytest.raises(InputError, match=override.split("=")[0].replace(".", r"\.")):
        tiny(override)


def test_a_search_refuses_float16_and_writes_nothing(tmp_path, tiny, tiny_data):
    with pytest.raises(InputError, match=r"does not run in float16.*bfloat16"):
        search(tiny("performance.precision=float16", "space=toy"), tmp_path / "a", data=tiny_data)
    assert not (tmp_path / "a").exists()


# --- bfloat16 in a search --------------------------------------------------------------------------------------------


def one_step(precision, dtype=torch.float32, method="moreau"):
    """One step of a search from the same weights on the same batches, on portable kernels."""
    torch.manual_seed(0)
    supernet = Supernet(load_space("toy"), 4, 3, 3, kernels="portable").to(dtype)
    draw = torch.Generator().manual_seed(1)
    batches = [Batch(torch.randn(8, 3, 16, 16, generator=draw).to(dtype), torch.arange(8) % 3, 0.5) for _ in range(2)]
    made = supernet_problem(supernet, 1.0, precision)
    solver = build_method(SearchConfig(method=method), 2)[0] if isinstance(method, str) else method
    return solver.step(made.problem, made.x, made.y, solver.init(made.problem, made.x, made.y), *batches)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in tensors(part)] if isinstance(value, (list, tuple)) else []


@pytest.mark.parametrize("method", ["moreau", "moreau-gauss-seidel", "moreau-jacobi", "darts1", "darts2"])
def test_bfloat16_leaves_alphas_weights_theta_and_losses_in_float32(method):
    x, y, state, info = one_step("bfloat16", method=method)
    floats = [t for t in tensors([x, y, state]) if t.is_floating_point()]
    assert floats and {t.dtype for t in floats} == {torch.float32}
    assert info.f.dtype == info.F.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in (info.norms or {}).values())


def test_bfloat16_directions_are_near_those_of_float64():
    """bfloat16 has 8 bits: losses within 1 %, directions of alphas and weights within a quarter of their length."""
    plain = moreau(alpha=1.0, beta=1.0, eta=1.0, gamma=1.0, c=0.2, order="lagged")  # steps are the directions
    exact, rough = one_step("float32", torch.float64, plain), one_step("bfloat16", method=plain)
    for name in ("F", "f", "f_theta"):
        assert getattr(rough[3], name).item() == pytest.approx(getattr(exact[3], name).item(), rel=0.01)
    torch.manual_seed(0)
    supernet = Supernet(load_space("toy"), 4, 3, 3)
    for i, begin in enumerate(([*supernet.alphas.values()], supernet.weights())):
        lengths = [
            torch.cat([(new.double() - old.detach().double()).flatten() for new, old in zip(result[i], begin)])
            for result in (exact, rough)
        ]
        apart = (lengths[1] - lengths[0]).norm() / lengths[0].norm()
        assert 1e-5 < apart < 0.25  # it did run in bfloat16


# --- float16 in a retraining -----------------------------------------------------------------------------------------


@pytest.fixture
def job_in(tiny, tiny_data):
    return lambda precision: plan_retraining(tiny(f"performance.precision={precision}"), CELL, tiny_data)


def stepped(job, steps=1):
    return [job.train_step().item() for _ in range(steps)]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_gives_the_losses_and_gradients_of_float32(precision, job_in):
    exact, rough = job_in("float32"), job_in(precision)
    rough.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # small enough for the first step to count
    losses = stepped(exact)[0], stepped(rough)[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.01) and losses[0] != losses[1]
    pairs = list(zip(exact.trainer.network.parameters(), rough.trainer.network.parameters()))
    assert all(p.dtype == p.grad.dtype == torch.float32 for pair in pairs for p in pair)
    ours, theirs = (torch.cat([pair[i].grad.flatten() for pair in pairs]) for i in (0, 1))
    assert torch.nn.functional.cosine_similarity(ours, theirs, 0) > 0.99
    assert theirs.norm().item() == pytest.approx(ours.norm().item(), rel=0.05)


def test_a_step_whose_scaled_gradients_overflow_changes_no_weight_and_halves_the_scale(job_in):
    job = job_in("float16")
    job.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [p.detach().clone() for p in job.trainer.network.parameters()]
    stepped(job)
    assert all(torch.equal(a, b) for a, b in zip(before, job.trainer.network.parameters()))
    assert job.trainer.scaler.get_scale() == 2.0**39
    job.trainer.scaler.load_state_dict(job.trainer.scaler.state_dict() | {"scale": 256.0})
    stepped(job)
    assert not all(torch.equal(a, b) for a, b in zip(before, job.trainer.network.parameters()))


def test_gradients_that_are_infinite_at_a_scale_of_one_are_a_fault(job_in):
    job = job_in("float16")
    job.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    job.trainer.network.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFinite, match="gradient"):
        stepped(job)


def test_a_float16_retraining_is_resumed_to_the_same_bytes(tmp_path, tiny, tiny_data, stop_at):
    config = tiny("performance.precision=float16")
    retrain(config, CELL, tmp_path / "whole", data=tiny_data)
    with pytest.raises(Interrupted):
        retrain(config, CELL, tmp_path / "parts", data=tiny_data, hooks=[stop_at(1)])
    retrain(config, CELL, tmp_path / "parts", resume=True, data=tiny_data)
    payloads = [load_checkpoint(tmp_path / name / "checkpoints")[0] for name in ("whole", "parts")]
    assert payloads[0]["scaler"] == payloads[1]["scaler"] and payloads[0]["scaler"]["scale"] < 2.0**16
    for name, tensor in payloads[0]["model"].items():
        assert torch.equal(tensor, payloads[1]["model"][name]), name


# --- layout and compiling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["supernet", "network"])
def test_channels_last_is_the_same_function(kind):
    def gradients(layout):
        torch.manual_seed(0)
        if kind == "supernet":
            net = Supernet(load_space("darts"), 2, 3, 3, kernels="portable")
        else:
            net = Network(CELL, 2, 3, 3, kernels="portable")
        net = net.double().to(memory_format=layout)
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        output = net(images.contiguous(memory_format=layout))
        return [output, *torch.autograd.grad(output.square().sum(), [*net.parameters()])]

    for plain, last in zip(gradients(torch.contiguous_format), gradients(torch.channels_last)):
        torch.testing.assert_close(last, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_a_compiled_retraining_is_not_compiled_anew_when_drop_path_grows(tmp_path, monkeypatch, tiny, tiny_data):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    config = tiny("performance.compile=true", "retrain.drop_path=0.3", "retrain.epochs=4", "retrain.steps_per_epoch=1")
    retrain(config, SMALL_CELL, tmp_path / "a", data=tiny_data)
    assert 1 <= len(compiled) <= 2  # without drop-path, and with it at any rate


def test_drop_path_in_compiled_code_keeps_the_share_and_the_mean():
    torch._dynamo.reset()
    dropped = torch.compile(drop_path, backend="eager")(torch.ones(4000, 1, 1, 1), 0.25).flatten()
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch.compile needs a C++ compiler on a CPU")
def test_code_that_was_really_compiled_gives_the_same_gradients():
    torch.manual_seed(0)
    network = Network(SMALL_CELL, 2, 1, 3, kernels="portable")
    images = torch.randn(4, 3, 8, 8)

    def results(forward):
        output = forward(images)
        return [output, *torch.autograd.grad(output.square().sum(), [*network.parameters()])]

    for compiled, eager in zip(results(torch.compile(network)), results(network)):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)
