"""The script that averages finished searches."""

import sys

import pytest

from nas_moreau.search import search
from nas_moreau.search.derive import derive_ensemble


@pytest.fixture(scope="module")
def script(script_of):
    return script_of("study_restarts")


def test_its_cells_are_those_of_the_mean_weights(script, tiny_config, tiny_data, tmp_path, monkeypatch, capsys):
    short = ("space=darts", "search.epochs=2", "search.alphas.lr=0.3", "logging.tensorboard=false")
    configs = [tiny_config(*short, f"seed={seed}") for seed in range(3)]
    runs = [tmp_path / "searches" / str(config.seed) for config in configs]
    for config, run in zip(configs, runs):
        search(config, run, data=tiny_data)
    name, steps, searches = script.read_searches([tmp_path])
    assert (name, steps) == ("darts", 2) and [len(found) for found in searches.values()] == [3]
    cells = []
    found = list(script.rows(name, searches, lambda cell: cells.append(cell) or len(cells), [1, 2, 3, 4], 2))
    assert [row[1:4] for row in found] == [
        [epoch, size, {1: 2, 2: 2, 3: 1}[size]] for epoch in range(2) for size in (1, 2, 3)
    ]
    assert cells[-1] == derive_ensemble(runs, configs[0]).genotype
    assert found[0][4] == 1.5 and found[0][6] == 1
    monkeypatch.setattr(sys, "argv", ["study", str(tmp_path), "--sizes", "1,3"])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * 2 and all(line.count("|") == 7 for line in lines)


def test_sets_are_all_of_them_or_some(script):
    assert script.sets(4, 2, 10) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    drawn = script.sets(12, 3, 5)
    assert len(drawn) == 5 and all(len(set(each)) == 3 for each in drawn) and drawn == script.sets(12, 3, 5)
