"""The script that compares found cells with random ones of their size."""

import sys

import pytest

from nas_moreau.architecture import load_genotype, parameter_count, percentile, published_cell
from nas_moreau.architecture.networks.network import Network
from nas_moreau.search import search


@pytest.fixture(scope="module")
def script(script_of):
    return script_of("study_cell_sizes")


def test_a_cell_has_the_parameters_of_its_network_and_its_percentile(script):
    cell = published_cell("DARTS_V2")
    assert script.judge(cell) == (parameter_count(Network(cell, 16, 8, auxiliary=False)), percentile(cell).mean)


def test_cells_of_the_same_size_are_within_one_standard_deviation(script):
    found, others = [(90, 1.0), (110, 2.0)], [(85, 0.0), (86, 1.0), (114, 2.0), (115, 3.0)]  # 100 +- 14.1
    assert script.of_size(found, others) == others[1:3]


def test_its_table(script, tiny_config, tiny_data, tmp_path, monkeypatch, capsys):
    runs = [tmp_path / str(seed) for seed in range(3)]
    for seed, run in enumerate(runs):
        search(tiny_config("space=darts", "search.epochs=1", f"seed={seed}"), run, data=tiny_data)
    monkeypatch.setattr(sys, "argv", ["study", *map(str, runs), "--random", "25"])
    script.main()
    _, _, drawn, found, same = capsys.readouterr().out.splitlines()
    assert drawn.startswith("| random | 25 |") and found.startswith("| `moreau+beta` | 3 |")
    mean = sum(percentile(load_genotype(run / "genotype.json")).mean for run in runs) / 3
    assert f"| {mean:.1f} ±" in found and same.split("|")[2].strip().isdigit()
