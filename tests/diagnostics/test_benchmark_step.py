"""The benchmark of the search step: its rows, sizes, and the claims that need no clock."""

import pytest
import torch

from nas_moreau.diagnostics.bench import SUPERNETS, BenchmarkPlan, benchmark
from nas_moreau.diagnostics.bench_cases import CPU, SIZES, Case, Size, goes_with, known_methods, parse_size
from nas_moreau.diagnostics.bench_measures import evaluation_flops, operator_calls, saved_bytes
from nas_moreau.diagnostics.bench_network import NETWORKS, benchmark_network, build_network
from nas_moreau.errors import InputError
from nas_moreau.kernels.cell import available


@pytest.mark.slow
def test_rows_follow_the_contract():
    methods = ("evaluation", "darts2", "moreau-lagged", "rhg", "gdas")
    result = benchmark(BenchmarkPlan("2,3,4", rounds=1, space="toy", methods=methods, memory=False)).to_dict()
    supernets = SUPERNETS if available() else SUPERNETS[:3]
    expected = [(s, m) for s in supernets for m in methods if goes_with(s, m)]
    assert [(row["supernet"], row["method"]) for row in result["rows"]] == expected
    for row in result["rows"]:
        assert set(row) == {
            "size",
            "threads",
            "supernet",
            "method",
            "milliseconds",
            "n",
            "saved_bytes",
            "resident_bytes",
            "operator_calls",
            "floor_milliseconds",
        }
        assert row["size"] == "2,3,4" and row["n"] == 1 and row["milliseconds"] > row["floor_milliseconds"] > 0


def test_what_goes_together():
    assert {"evaluation", "moreau", "gdas", "rhg"} <= set(known_methods()) and "random" not in known_methods()
    assert goes_with("literal", "darts2") and not goes_with("literal", "moreau")
    assert goes_with("portable", "rhg") and not goes_with("native", "rhg") and goes_with("native", "moreau")


@pytest.mark.slow
def test_sharing_saves_activations_and_operator_calls():
    cases = {name: Case(name, "evaluation", Size(8, 3, 16)) for name in ("literal", "portable", "native")}
    saved = {name: saved_bytes(cases[name]) for name in ("literal", "portable")}
    calls = {name: operator_calls(cases[name]) for name in ("literal", "portable")}
    assert saved["portable"] < 0.7 * saved["literal"]
    assert calls["portable"] < 0.66 * calls["literal"]
    if available():
        assert saved_bytes(cases["native"]) < 0.4 * saved["literal"]
        assert operator_calls(cases["native"]) < 0.25 * calls["literal"]


def test_the_floor_counts_three_passes_of_two_operations():
    # doubling the batch doubles the arithmetic
    assert evaluation_flops("toy", Size(4, 2, 6)) == 2 * evaluation_flops("toy", Size(4, 2, 3))


@pytest.mark.parametrize("text", ["X", "1,2", "0,1,1", "a,b,c", ""])
def test_invalid_sizes_are_refused(text):
    with pytest.raises(InputError, match=repr(text)):
        parse_size(text)
    assert parse_size("T") == (8, 5, 16) and parse_size("16,8,64") == SIZES["full"]


@pytest.mark.parametrize("choice", [{"supernets": ("quick",)}, {"methods": ("quick",)}, {"size": "quick"}])
def test_unknown_choices_are_refused(choice):
    with pytest.raises(InputError, match="'quick'"):
        benchmark(BenchmarkPlan(**choice))


def test_networks_compared_are_the_same_function():
    size = Size(4, 3, 2)
    kinds = NETWORKS if available() else NETWORKS[:3]
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    outputs = [build_network(kind, size, "DARTS_V2", CPU).double()(images) for kind in kinds]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-9, atol=1e-11)
    rows = benchmark_network(size, rounds=1).rows
    assert [row.network for row in rows] == list(kinds)
    for row in rows:
        assert row.images_per_second == pytest.approx(2000 / row.milliseconds)
