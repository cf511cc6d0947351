"""Depthwise convolutions in Triton: by its interpreter against torch and the literal cell, and when they are used."""

import os
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as f

from nas_moreau.architecture import Network, load_genotype
from nas_moreau.architecture.networks import depthwise as selection

triton = pytest.importorskip("triton")


def test_interpreted_they_equal_torch_and_the_literal_cell():
    # whether kernels are interpreted is decided when Triton is imported
    file = Path(__file__).with_name("interpreted_depthwise.py")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert found.returncode == 0 and "15 passed" in found.stdout, found.stdout[-3000:]


def library(x, weight, stride, dilation):
    return f.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation, len(weight))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("k", "stride"), [(3, 1), (5, 2)])
def test_kernels_compile_for_accelerators_without_one(capability, k, stride):
    from triton.backends import backends

    if "nvidia" not in backends:
        pytest.skip("this Triton compiles for other devices")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.language import float32

    from nas_moreau.kernels import depthwise as module

    common = {"STRIDE": stride, "DILATION": 1, "K": k, "ACC": float32, "BP": 64, "BC": 16}
    pointers, sizes = dict.fromkeys, ("channels", "height", "width", "out_height", "out_width")
    forms = [
        (module._gather, ("source", "weight", "target"), ("pixels", *sizes), {"TRANSPOSED": transposed})
        for transposed in (False, True)
    ]
    forms.append((module._weight_gradient, ("source", "grad", "partial"), ("pixels", "share", *sizes), {"COLUMNS": 8}))
    for function, tensors, numbers, own in forms:
        constants = common | own
        types_ = pointers(tensors, "*fp32") | dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
        source = ASTSource(function, types_, constexprs=constants)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


# --- when they are used ---


@pytest.fixture
def somewhere(monkeypatch):
    """Tensors of the CPU count as an accelerator's; returns what was called."""
    calls = []

    def own(x, weight, stride, dilation):
        calls.append("triton")
        return library(x, weight, stride, dilation)

    monkeypatch.setattr(selection, "trials", {})
    monkeypatch.setattr(selection, "_triton", lambda: own)
    monkeypatch.setattr(selection, "_has_triton", lambda kind: True)
    monkeypatch.setattr(selection, "_on", lambda device: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # knows no meta device
    return calls


def far(*shape):
    """A tensor without numbers: no CPU's."""
    return torch.empty(shape, device="meta")


def test_the_first_call_with_a_form_decides_for_it(somewhere, monkeypatch):
    tried = []
    monkeypatch.setattr(selection, "_triton_is_better", lambda x, *_: tried.append(x.shape) or x.shape[1] == 16)
    for channels in (16, 8, 16, 8):
        selection.depthwise(far(2, channels, 4, 4), far(channels, 1, 3, 3))
    assert [shape[1] for shape in tried] == [16, 8]
    assert somewhere == ["triton", "triton"]


def test_without_a_trial_the_library_is_used(somewhere, monkeypatch):
    monkeypatch.setattr(selection, "_triton_is_better", lambda *_: True)
    x, weight = far(2, 4, 4, 4), far(4, 1, 3, 3)
    with torch.no_grad():
        selection.depthwise(x, weight)
    monkeypatch.setattr(selection, "_is_recorded", lambda kind: True)
    selection.depthwise(x, weight)
    assert not somewhere and not selection.trials
    monkeypatch.setattr(selection, "_is_recorded", lambda kind: False)
    selection.depthwise(x, weight)
    monkeypatch.setattr(selection, "_is_recorded", lambda kind: True)
    selection.depthwise(x, weight)  # a form that was tried before
    assert somewhere == ["triton", "triton"]


def test_derived_networks_use_them_too(somewhere, monkeypatch):
    monkeypatch.setattr(selection, "_triton_is_better", lambda *_: True)
    with torch.device("meta"):
        network = Network(load_genotype("DARTS_V2"), channels=4, layers=3, auxiliary=False)
    network(far(2, 3, 16, 16))
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d) and part.groups > 1]
    assert len(somewhere) == len(convolutions) > 0


@pytest.mark.parametrize(
    ("own", "times", "better"),
    [
        (library, (1.0, 2.0), True),
        (library, (2.0, 1.0), False),
        (lambda x, w, s, d: 1.05 * library(x, w, s, d), (1.0, 2.0), False),
        (lambda x, w, s, d: library(x, w, s, d) * float("nan"), (1.0, 2.0), False),
        (lambda x, w, s, d: library(x, w.detach(), s, d) + 0 * w.sum(), (1.0, 2.0), False),  # no gradient in w
        (lambda x, w, s, d: 1 / 0, (1.0, 2.0), False),
    ],
    ids=["faster", "slower", "wrong", "not finite", "wrong gradient", "fails"],
)
def test_a_trial_wants_the_same_numbers_in_less_time(monkeypatch, own, times, better):
    torch.manual_seed(0)
    monkeypatch.setattr(selection, "_triton", lambda: own)
    monkeypatch.setattr(selection, "_time", lambda run, convolution: times[convolution is not own])
    monkeypatch.setattr(selection, "_library", lambda *given: library(*given))
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(4, 1, 3, 3)
    with torch.no_grad():
        assert selection._triton_is_better(x, weight, 1, 1) is better
    assert x.grad is None and weight.grad is None


def test_the_switch_of_native_operators_is_theirs_too(monkeypatch):
    import triton.runtime

    there = types.SimpleNamespace(get_active_torch_device=lambda: torch.device("meta"))
    monkeypatch.setattr(triton.runtime, "driver", types.SimpleNamespace(active=there))
    for value, expected in (("1", True), ("0", False)):
        monkeypatch.setenv("NAS_MOREAU_NATIVE", value)
        selection._has_triton.cache_clear()
        assert selection._has_triton("meta") is expected and not selection._has_triton("cpu")
    selection._has_triton.cache_clear()
