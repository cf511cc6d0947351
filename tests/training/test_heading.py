"""The first line of a stage, and the warning of an end that is far away."""

import pytest

from nas_moreau.search.stage import search
from nas_moreau.training import loop
from nas_moreau.training.retrain import retrain


def test_the_first_line_names_device_data_sizes_and_method(tiny_config, tiny_data, tmp_path, capsys):
    found = search(tiny_config("search.method=darts1"), tmp_path / "s", data=tiny_data)
    first = capsys.readouterr().err.splitlines()[0]
    for part in (
        "search: darts1",
        "cpu, 1 thread",
        "6 steps in 3 epochs",
        "tiny",
        "60 training images, 8x8, 3 classes",
    ):
        assert part in first
    retrain(tiny_config(), found.genotype, tmp_path / "r", data=tiny_data)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("retrain: ") and found.digest in first and "channels" in first


@pytest.mark.parametrize("limit", [0.0, 1e9])
def test_an_end_that_is_too_far_away_is_warned_of_once(limit, tiny_config, tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "RATE_KNOWN", 0.0)
    monkeypatch.setattr(loop, "LATE", limit)
    search(tiny_config("search.epochs=4"), tmp_path, data=tiny_data)
    assert capsys.readouterr().err.count("nas-moreau plan") == (limit == 0)
