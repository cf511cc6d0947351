"""The comparison of several runs: hand-counted means, groups by settings, links, hostile names."""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path

import pytest
import yaml

from nas_moreau.architecture.spaces.percentile import limit, percentile
from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.cli import main
from nas_moreau.errors import InputError
from nas_moreau.report.several_runs import agreement, figures, group, outcome, write_several_runs
from nas_moreau.runs.history import read_run


def write_run(folder: Path, seed: int, accuracy: float | None, cell: str = "DARTS_V1", **search: object) -> Path:
    config = {"seed": seed, "space": "darts", "data": {"name": "shapes"}, "search": {"method": "moreau", **search}}
    genotype = published_cell(cell).to_json()
    results = {"search": {"method": config["search"]["method"], "held_out_accuracy": 0.5, "wall_seconds": 60.0 + seed}}
    if accuracy is not None:
        results["retrain"] = {"test_accuracy": accuracy, "parameters": 1000, "wall_seconds": 30.0}
    for stage in ("", *results):
        place = folder / stage
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        (place / "status.json").write_text(json.dumps({"state": "finished", "stage": stage or "run"}))
        if stage:
            (place / "result.json").write_text(json.dumps(results[stage]))
            (place / "genotype.json").write_text(genotype)
    (folder / "result.json").write_text(json.dumps(results))
    return folder


def test_three_seeds_are_one_group_with_their_mean_and_deviation(tmp_path):
    paths = [write_run(tmp_path / f"s{i}", i, value) for i, value in enumerate((0.90, 0.92, 0.97))]
    groups = group([read_run(path) for path in paths])
    assert [(found.name, len(found.runs)) for found in groups] == [("moreau", 3)]
    # mean .93, deviations -.03 -.01 .04: sqrt((9 + 1 + 16)/2) = 3.606
    assert math.isclose(math.sqrt(13), 3.606, abs_tol=1e-3)
    assert "moreau" in outcome(groups) and "93.00 ± 3.61 %" in outcome(groups)
    text = write_several_runs(paths, tmp_path / "c.html").read_text()
    assert "93.00 ± 3.61 %" in text
    assert "3 min 03 s" in text  # 60 + 61 + 62 seconds of search


def test_cells_have_percentiles_where_there_are_any(tmp_path):
    cells = ("DARTS_V1", "MEHA", "NASNet")
    paths = [write_run(tmp_path / cell, i, 0.9, cell) for i, cell in enumerate(cells)]
    text = write_several_runs(paths, tmp_path / "c.html").read_text()
    means = [percentile(published_cell(cell)).mean for cell in cells[:2]]
    section = re.search(r'<section id="percentile">.*?</section>', text, re.DOTALL)[0]
    row = re.findall(r"<td[^>]*>([^<]*)</td>", section)
    assert row[:2] == ["moreau", "2"] and row[3:5] == [f"{min(means):.0f}", f"{max(means):.0f}"] and row[-1] == "1"
    assert limit() in html.unescape(section)
    others = [write_run(tmp_path / name, 0, 0.9, "NASNet") for name in "ab"]
    assert 'id="percentile"' not in write_several_runs(others, tmp_path / "c.html").read_text()


def test_a_run_that_was_done_again_counts_once(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_run(tmp_path / name, seed, 0.93 if seed else 0.91)
    groups = group([read_run(tmp_path / name) for name in "abc"])
    assert figures(groups[0], "test_accuracy") == [0.91, 0.93]
    assert "n = 2" in outcome(groups) or "2 seeds" in outcome(groups)
    assert "1 of the runs repeats" in outcome(groups)


def test_groups_are_named_by_what_differs_and_set_against_each_other(tmp_path):
    runs = [("a", 0, 0.90, {}), ("b", 1, 0.92, {}), ("c", 0, 0.95, {"beta": 2}), ("d", 1, 0.91, {"beta": 2})]
    paths = [write_run(tmp_path / name, seed, value, **more) for name, seed, value, more in runs]
    groups = group([read_run(path) for path in paths])
    assert [found.name for found in groups] == ["moreau, beta –", "moreau, beta 2"]
    text = outcome(groups)
    assert text.index("moreau, beta 2") < text.index("93.00 ± 2.83 %") < text.index("moreau, beta –")
    assert "2.00 points" in text and "p 0.667" in text
    darts = write_run(tmp_path / "e", 0, 0.5, method="darts1")
    assert [found.name for found in group([read_run(p) for p in (paths[0], darts)])] == ["moreau", "darts1"]
    page = write_several_runs(paths, tmp_path / "c.html").read_text()
    settings = page[page.index('id="settings"') :]
    assert "search.beta" in settings.replace("<wbr>", "") and "search.method" not in settings.replace("<wbr>", "")


def test_searches_alone_are_compared_by_their_supernets(tmp_path):
    groups = group([read_run(write_run(tmp_path / f"s{i}", i, None)) for i in range(2)])
    assert "50.00 ± 0.00 %" in outcome(groups)


def test_cells_in_common_are_counted(tmp_path):
    # DARTS_V1 and DARTS_V2 by hand: of the normal cells' edges sep_conv_3x3 0-2, 1-2, 1-3, 1-4 and skip 0-4 stand in
    # both; of the reduction cells' max_pool 0-2, 1-2, 0-4 and skip 2-3, 2-4, 2-5: 11 of 16, or 69 %
    runs = [write_run(tmp_path / f"s{i}", i, 0.5, cell) for i, cell in enumerate(("DARTS_V1", "DARTS_V2"))]
    text = agreement(group([read_run(run) for run in runs]))
    assert "2 different" in text and "69 %" in text
    same = agreement(group([read_run(write_run(tmp_path / f"t{i}", i, 0.5)) for i in range(2)]))
    assert "1 different" in same and "100 %" in same


def test_hostile_names_stay_text_and_links_lead_to_the_reports(tmp_path):
    name = '<script>alert(1)</script> \U0001f600 & "q" \'%23' + "x" * 150
    paths = [
        write_run(tmp_path / "runs" / name.replace("/", "_"), 0, 0.5, method="<img src=x>"),
        write_run(tmp_path / "runs" / "b", 1, 0.6, method="<img src=x>"),
    ]
    for path in paths:
        (path / "report.html").write_text("x")
    page = write_several_runs(paths, tmp_path / "c.html").read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    from html import unescape
    from urllib.parse import unquote

    links = [tmp_path / unquote(unescape(link)) for link in re.findall(r'<a href="([^"]*)"', page)]
    assert [link.read_text() for link in links] == ["x", "x"]


def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path):
    run = write_run(tmp_path / "a", 0, 0.5)
    with pytest.raises(InputError, match="twice"):
        write_several_runs([run, tmp_path / "b" / ".." / "a"], tmp_path / "c.html")
    with pytest.raises(InputError, match="gone"):
        write_several_runs([run, tmp_path / "gone"], tmp_path / "c.html")
    with pytest.raises(InputError, match="--output"):
        write_several_runs([run, write_run(tmp_path / "b", 1, 0.5)], tmp_path)
    with pytest.raises(InputError, match="--output"):
        write_several_runs([run, tmp_path / "b"], tmp_path / "not" / "there.html")


def test_the_command_writes_each_report_and_the_comparison_beside_the_runs(tmp_path, capsys):
    paths = [str(write_run(tmp_path / f"s{i}", i, 0.5)) for i in range(2)]
    assert main(["report", *paths, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["comparison"] == str(tmp_path / "comparison.html") and len(found["reports"]) == 2
    assert all(Path(path).exists() for path in (found["comparison"], *found["reports"]))
    assert main(["report", *paths, "--output", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").exists()
    assert main(["report", paths[0], "--output", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").exists()


def test_a_run_that_was_done_again_makes_cells_neither_alike_nor_more(tmp_path):
    cells = ("DARTS_V1", "DARTS_V2")
    paths = [write_run(tmp_path / f"s{i}", i, 0.5, cell) for i, cell in enumerate(cells)]
    again = write_run(tmp_path / "again", 0, 0.5, cells[0])
    assert "69 %" in agreement(group([read_run(path) for path in [*paths, again]]))
    once, twice = (write_several_runs(several, tmp_path / "c.html").read_text() for several in (paths, [*paths, again]))
    for name in ("percentile", "operations"):
        section = re.compile(rf'<section id="{name}">.*?</section>', re.DOTALL)
        cells = [re.findall(r"<td[^>]*>([^<]*)</td>", section.search(page)[0]) for page in (once, twice)]
        assert cells[0] == cells[1]
