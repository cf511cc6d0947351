"""The benchmark of the search step: its rows, sizes, and the claims that need no clock."""

import pytest
import torch

from nas_moreau.diagnostics import bench, bench_cases, bench_measures, bench_network
from nas_moreau.errors import InputError
from nas_moreau.kernels.cell import available

CPU = torch.device("cpu")


@pytest.mark.slow
def test_rows_follow_the_contract():
    result = bench.benchmark(
        "2,3,4", rounds=1, space="toy", methods=("evaluation", "darts2", "moreau-lagged"), memory=False
    )
    supernets = bench.SUPERNETS if available() else bench.SUPERNETS[:3]
    expected = [
        (s, m)
        for s in supernets
        for m in ("evaluation", "darts2", "moreau-lagged")
        if m != "moreau-lagged" or not s.startswith("literal")
    ]
    assert [(row["supernet"], row["method"]) for row in result["rows"]] == expected
    for row in result["rows"]:
        assert set(row) == {
            "size", "threads", "supernet", "method", "milliseconds", "n", "saved_bytes", "resident_bytes",
            "operator_calls", "floor_milliseconds",
        }  # fmt: skip
        assert row["size"] == "2,3,4" and row["n"] == 1 and row["milliseconds"] > row["floor_milliseconds"] > 0


@pytest.mark.slow
def test_sharing_saves_activations_and_operator_calls():
    saved = {s: bench_measures.saved_bytes("darts", "8,3,16", s, CPU) for s in ("literal", "portable")}
    calls = {s: bench_measures.operator_calls("darts", "8,3,16", s, CPU) for s in ("literal", "portable")}
    assert saved["portable"] < 0.7 * saved["literal"]
    assert calls["portable"] < 0.66 * calls["literal"]
    if available():
        assert bench_measures.saved_bytes("darts", "8,3,16", "native", CPU) < 0.4 * saved["literal"]
        assert bench_measures.operator_calls("darts", "8,3,16", "native", CPU) < 0.25 * calls["literal"]


def test_the_floor_counts_three_passes_of_two_operations():
    # a linear-free check: doubling the batch doubles the arithmetic
    assert bench_measures.evaluation_flops("toy", "4,2,6") == 2 * bench_measures.evaluation_flops("toy", "4,2,3")


@pytest.mark.parametrize("text", ["X", "1,2", "0,1,1", "a,b,c", ""])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="is no size"):
        bench.parse_size(text)
    assert bench.parse_size("T") == (8, 5, 16) and bench.parse_size("16,8,64") == bench_cases.SIZES["full"]


def test_unknown_choices_are_refused():
    with pytest.raises(InputError, match="no 'quick'"):
        bench.benchmark("T", supernets=("quick",))


def test_networks_compared_are_the_same_function():
    size = bench_cases.Size(4, 3, 2)
    kinds = bench_network.NETWORKS if available() else bench_network.NETWORKS[:3]
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    outputs = [bench_network.build_network(kind, size, "DARTS_V2", CPU).double()(images) for kind in kinds]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-9, atol=1e-11)
    rows = bench_network.benchmark_network(size, rounds=1)["rows"]
    assert [row["network"] for row in rows] == list(kinds)
    for row in rows:
        assert row["images_per_second"] == pytest.approx(2000 / row["milliseconds"])
