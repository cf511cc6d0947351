"""The compare stage: rows, resume row by row, the summary by hand, refusals, the page; tiny images in a file."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from nas_moreau.architecture import Genotype, load_space
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.cli import entry as cli
from nas_moreau.compare import protocol as stage
from nas_moreau.compare.conditions import conditions, split_settings
from nas_moreau.compare.protocol import Protocol, compare, plan_comparison
from nas_moreau.compare.rows import folder_name, read_rows, rows_file, rows_of_search
from nas_moreau.compare.summary import PERCENTILES
from nas_moreau.config import load_config
from nas_moreau.errors import InputError
from nas_moreau.runs.configuration import read_config
from nas_moreau.runs.tables import csv_text, read_table
from nas_moreau.search.methods import parse_methods

TINY = [
    "space=nas_bench_201",
    "search.channels=2",
    "search.layers=1",
    "search.epochs=2",
    "search.steps_per_epoch=1",
    "search.batch_size=4",
    "search.augment.crop=1",
    "retrain.channels=2",
    "retrain.layers=1",
    "retrain.epochs=1",
    "retrain.steps_per_epoch=1",
    "retrain.batch_size=4",
    "retrain.auxiliary=false",
    "retrain.validation=0.2",
    "logging.tensorboard=false",
    "performance.threads=1",
]
SPACE = load_space("nas_bench_201")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """60 images of 8x8 in three classes."""
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    pixels, labels = draw.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels[:30], y_test=labels[:30])
    return f"npz:{path}"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Every cell, its accuracy in per cent by its operations alone."""
    from itertools import product

    worth = {"none": 0, "skip_connect": 5, "avg_pool_3x3": 3, "nor_conv_1x1": 9, "nor_conv_3x3": 12}
    lines = ["arch,acc,c10_valid25k_12ep"]
    for word in product(worth, repeat=6):
        text = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*word)
        accuracy = 20 + sum(worth[operation] for operation in word)
        lines.append(f"{text},{accuracy},{accuracy / 2}")
    path = tmp_path_factory.mktemp("table") / "table.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def here(monkeypatch):
    """Runs go through the command line in this process; the list tells which."""
    ran = []

    def run_all(chains, jobs, stop, place):
        for chain in chains:
            for command in chain:
                ran.append(command.name)
                assert cli.main(command.arguments) == 0
        return []

    monkeypatch.setattr(stage, "run_all", run_all)
    return ran


def tiny(images, *overrides):
    return load_config(overrides=[*TINY, f"data.name={json.dumps(images)}", *overrides])


# --- words ---


def test_methods_may_bring_their_seeds():
    found = parse_methods("moreau+beta, darts1:7,random:0-3", "1,4-5")
    assert found == {"moreau+beta": (1, 4, 5), "darts1": (7,), "random": (0, 1, 2, 3)}


@pytest.mark.parametrize(
    ("methods", "seeds", "named"),
    [
        ("moreau,moreau", "0", "moreau"),
        ("moreu", "0", "moreu"),
        ("moreau", "0,x", "'x'"),
        ("moreau", "3-1", "'3-1'"),
        ("moreau", "-1", "'-1'"),
        ("moreau", "0,0", "0,0"),
        ("random:", "0", "''"),
        ("", "0", "method"),
    ],
)
def test_methods_and_seeds_that_cannot_be_read_are_refused(methods, seeds, named):
    with pytest.raises(InputError) as refused:
        parse_methods(methods, seeds)
    assert named in refused.value.cause


def test_folders_of_methods_with_any_name_are_distinct_and_stay_inside():
    names = [folder_name(method, 0) for method in ("moreau+beta", "../../x", "a/b", "a_b", "a b")]
    assert len(set(names)) == len(names) and not any("/" in name for name in names)


def test_without_retraining_percentiles_judge_the_cells(images, here, tmp_path):
    output = tmp_path / "c"
    found = compare(tiny(images, "space=darts"), {"random": (0, 1)}, output, protocol=Protocol(retrain=False))
    assert here == ["search random-seed0", "search random-seed1"]
    assert [line.figure for line in found.summary] == list(PERCENTILES)
    assert 'id="percentile"' in (output / "compare.html").read_text()
    with pytest.raises(InputError) as refused:
        compare(tiny(images), {"random": (0,)}, tmp_path / "d", protocol=Protocol(retrain=False))
    assert "nas_bench_201" in refused.value.cause and "--table" in refused.value.cure


def test_rows_of_darts_cells_have_percentiles_and_others_none(tmp_path):
    from nas_moreau.architecture import load_genotype, percentile

    cells = {"darts": load_genotype("DARTS_V2"), "nas_bench_201": SPACE.random_genotype(random.Random(0))}
    for name, genotype in cells.items():
        folder = tmp_path / name
        folder.mkdir()
        result = {"genotype": genotype.to_dict(), "wall_seconds": 1.0, "held_out_accuracy": None, "alphas": {}}
        (folder / "result.json").write_text(json.dumps(result | {"peak_memory_bytes": 1}))
        (found,) = rows_of_search("random", 0, folder)
        rank = percentile(genotype)
        expected = [None] * 4 if rank is None else [rank.mean, rank.ridge, rank.trees, rank.of_size]
        assert [getattr(found, name) for name in PERCENTILES] == expected
        (tmp_path / "rows.csv").write_bytes(rows_file([found]))
        assert read_rows(tmp_path / "rows.csv") == {name: [found]}
        # a file of an earlier version lacks the last column
        older = csv_text([line[:-1] for line in csv.reader((tmp_path / "rows.csv").read_text().splitlines())])
        (tmp_path / "older.csv").write_text(older)
        assert read_rows(tmp_path / "older.csv") == {name: [replace(found, percentile_of_size=None)]}


def test_settings_of_one_method_are_told_apart_from_those_of_all():
    given = ["search.epochs=3", "darts1:search.alphas.lr=0.5", "a+b:derive.rule=x:y", "data.name=npz:images.npz"]
    common, single = split_settings(given)
    assert common == ["search.epochs=3", "data.name=npz:images.npz"]
    assert single == {"darts1": ["search.alphas.lr=0.5"], "a+b": ["derive.rule=x:y"]}


def test_conditions_by_hand(images):
    config = tiny(images, "search.alphas.rule=mirror", "search.alphas.step=0.25")
    own = {"darts1": ["search.alphas.rule=adam", "search.alphas.lr=0.5"], "moreau": ["search.moreau.theta_steps=3"]}
    found = [conditions(config, name, own) for name in ("moreau", "darts1", "darts2", "random")]
    assert [(line.evaluations, line.steps, line.alphas) for line in found] == [
        (5, 2, "mirror 0.25"),
        (2, 2, "adam 0.5"),
        (5, 2, "mirror 0.25"),
        (0, 0, None),
    ]
    assert found[0].settings == ("search.moreau.theta_steps=3",) and found[2].settings == ()


# --- whole comparisons ---


@pytest.mark.slow
def test_a_setting_of_one_method_reaches_its_searches_alone_and_is_kept(images, table, here, tmp_path):
    output, methods = tmp_path / "c", {"darts1": (0,), "joint": (0,)}
    own = {"joint": ["search.alphas.rule=mirror"]}
    result = compare(tiny(images), methods, output, protocol=Protocol(table, "acc", settings=own))
    rules = [read_config(output / "searches" / f"{name}-seed0")["search"]["alphas"]["rule"] for name in methods]
    assert rules == ["adam", "mirror"]
    assert [line.alphas for line in result.conditions] == ["adam 0.0003", "mirror 0.1"]
    again = compare(tiny(images), {"joint": (0, 1)}, output, True, protocol=Protocol(table, "acc"))
    assert read_config(output / "searches" / "joint-seed1")["search"]["alphas"]["rule"] == "mirror"
    assert again.conditions[0].settings == ("search.alphas.rule=mirror",)
    for other, named in [
        ({"joint": ["search.alphas.rule=adam"]}, "joint:search.alphas.rule=mirror"),
        ({"darts1": ["search.alphas.lr=1"]}, "none"),
        ({"darts2": ["search.alphas.lr=1"]}, "darts2"),
        ({"joint": ["retrain.epochs=1"]}, "retrain.epochs=1"),
        ({"joint": ["search.method=darts1"]}, "search.method"),
    ]:
        with pytest.raises(InputError) as refused:
            compare(tiny(images), methods, output, True, protocol=Protocol(table, "acc", settings=other))
        assert named in refused.value.cause


def test_an_invalid_setting_of_one_method_is_refused_before_anything_is_written(images, table, tmp_path):
    own = {"darts1": ["search.alphas.lrr=1"]}
    with pytest.raises(InputError, match="lrr"):
        compare(tiny(images), {"darts1": (0,)}, tmp_path / "c", protocol=Protocol(table, "acc", settings=own))
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_a_comparison_with_a_table_its_json_and_its_resume(images, table, here, tmp_path, capsys):
    config, output = tiny(images), tmp_path / "c"
    first = compare(config, {"darts1": (0,), "random": (0,)}, output, protocol=Protocol(table, "acc"))
    assert here == ["search darts1-seed0", "search random-seed0"]
    # another seed and another method: only what is new is computed
    methods = {"darts1": (0, 1), "moreau": (0,), "random": (0, 1)}
    result = compare(config, methods, output, True, protocol=Protocol(table, "acc"))
    assert here[2:] == ["search moreau-seed0", "search darts1-seed1", "search random-seed1"]
    again = compare(config, methods, output, True, protocol=Protocol(table, "acc"))
    assert len(here) == 5 and again == result
    kept = [line for line in result.rows if line.search in ("darts1-seed0", "random-seed0")]
    assert sorted(kept, key=lambda r: r.search) == sorted(first.rows, key=lambda r: r.search)

    plain = result.to_dict()
    assert {
        "method",
        "seed",
        "genotype",
        "digest",
        "held_out_accuracy",
        "retrained_accuracy",
        "table",
        "search_seconds",
        "search_peak_memory_bytes",
    } <= set(plain["rows"][0])
    assert {"method", "n", "mean", "std", "min", "max", "relative_improvement"} <= set(plain["summary"][0])
    assert json.loads((output / "result.json").read_text()) == json.loads(json.dumps(plain))
    for line in result.rows:
        cell = Genotype.from_json(line.genotype)
        words = [edge[0] for edge in cell.cells["cell"].edges]
        worth = {"none": 0, "skip_connect": 5, "avg_pool_3x3": 3, "nor_conv_1x1": 9, "nor_conv_3x3": 12}
        assert line.table == pytest.approx((20 + sum(worth[word] for word in words)) / 100)
        idle = words.count("skip_connect") + words.count("none")
        assert line.idle_share == pytest.approx(idle / 6)
        assert (line.verdict == "collapsed") == (idle > 3)
        assert cell.digest() == line.digest and line.retrained_accuracy is None
    # exact: the mean worth of an edge is 29 / 5
    assert result.baselines[0]["mean"] == pytest.approx((20 + 6 * 29 / 5) / 100)
    page = (output / "compare.html").read_text()
    assert (
        "seconds of the search" in page
        and "convolution-only" in page
        and "http" not in page.replace("http://www.w3.org/", "")
    )
    assert len(read_table(output / "rows.csv")) == 5
    drawn = page.partition('id="best-cells"')[2].partition("</section>")[0].split("<h3>")[1:]
    best = {}
    for line in sorted(result.rows, key=lambda line: line.table):
        best[line.method] = line
    assert len(drawn) == len(best) and all(part.count("<svg") == 1 for part in drawn)
    for part, line in zip(drawn, sorted(best.values(), key=lambda line: -line.table)):
        assert part.startswith(line.method) and f"seed {line.seed}<" in part


def test_without_a_table_every_cell_is_retrained_by_one_recipe(images, here, tmp_path):
    output = tmp_path / "c"
    methods = {"darts1": (0,), "random": (0, 1)}
    result = compare(tiny(images), methods, output)
    assert [name for name in here if name.startswith("retrain")] == [
        "retrain darts1-seed0",
        "retrain random-seed0",
        "retrain random-seed1",
    ]
    for line in result.rows:
        found = json.loads((output / "retrained" / line.search / "result.json").read_text())
        assert line.retrained_accuracy == found["test_accuracy"] and found["digest"] == line.digest
        assert line.retrained_held_out_accuracy is not None and line.table is None
    assert {line.figure for line in result.summary} == {"retrained_accuracy", "retrained_held_out_accuracy"}
    compare(tiny(images), methods, output, True)
    assert len(here) == 6


def test_finished_rows_need_no_folders_and_a_lost_row_none_of_its_runs(images, table, here, tmp_path):
    output = tmp_path / "c"
    methods = {"darts1": (0, 1)}
    result = compare(tiny(images), methods, output, protocol=Protocol(table, "acc"))
    (output / "files.json").unlink()  # the files are to be used as they are
    lines = (output / "rows.csv").read_text().splitlines(keepends=True)
    (output / "rows.csv").write_text("".join(lines[:2]) + lines[2][: len(lines[2]) // 2])  # a torn last row
    again = compare(tiny(images), methods, output, True, protocol=Protocol(table, "acc"))
    assert again.rows == result.rows and len(here) == 2  # the search of the lost row was finished
    import shutil

    shutil.rmtree(output / "searches")
    assert compare(tiny(images), methods, output, True, protocol=Protocol(table, "acc")).rows == result.rows


def test_a_finished_run_of_another_search_or_cell_is_not_read_for_a_lost_row(images, here, monkeypatch, tmp_path):
    output = tmp_path / "c"
    compare(tiny(images), {"random": (0, 1)}, output)
    for name in ("rows.csv", "files.json"):
        (output / name).unlink()
    to_do = []

    def first_commands(chains, jobs, stop, place):
        to_do.append([command.name for chain in chains if (command := next(chain, None)) is not None])
        raise InputError("Seen.", "Go on.")

    monkeypatch.setattr(stage, "run_all", first_commands)
    for kind in ("retrained", "searches"):  # as after folders were moved by hand
        first, second = (output / kind / f"random-seed{seed}" for seed in (0, 1))
        first.rename(tmp_path / "aside")
        second.rename(first)
        (tmp_path / "aside").rename(second)
        with pytest.raises(InputError):
            compare(tiny(images), {"random": (0, 1)}, output, True)
    assert to_do == [[f"{verb} random-seed{seed}" for seed in (0, 1)] for verb in ("retrain", "search")]


def test_ranking_by_one_hot_losses(images, table, here, tmp_path):
    output = tmp_path / "c"
    result = compare(tiny(images), {"darts1": (0,), "random": (0,)}, output, protocol=Protocol(table, "acc", rank=6))
    losses = json.loads((output / "searches" / "darts1-seed0" / "rank.json").read_text())
    assert losses["cells"] == len(losses["running"]) == len(losses["batch"]) == 6
    searched, drawn = result.rows
    assert -1 <= searched.tau_running <= 1 and drawn.tau_running is None
    # the early accuracy is half the late one
    assert result.ranking["c10_valid25k_12ep"] == pytest.approx(1) and result.ranking["cells"] == 6
    assert "rank cells" in (output / "compare.html").read_text()


def test_a_selection_makes_two_rows_that_are_never_mixed(tmp_path):
    folder = tmp_path / "moreau-seed0"
    folder.mkdir()
    before, after = (SPACE.random_genotype(random.Random(seed)).to_dict() for seed in (1, 2))
    (folder / "metrics.csv").write_text("epoch,wall_seconds\n0,0.25\n1,0.75\n")
    (folder / "result.json").write_text(
        json.dumps(
            {
                "genotype": after,
                "before_rule": {"genotype": before},
                "held_out_accuracy": 0.5,
                "wall_seconds": 1.0,
                "peak_memory_bytes": 7,
                "derived_by": {"rule": "selection"},
                "alphas": {},
            }
        )
    )
    rows = list(rows_of_search("moreau", 0, folder))
    assert [(line.method, line.rule, line.genotype) for line in rows] == [
        ("moreau", None, before),
        ("moreau", "selection", after),
    ]
    assert [line.label for line in rows] == ["moreau", "moreau +selection"]
    assert [line.search_seconds for line in rows] == [0.75, 1.0]  # the time of the rule is in its row alone
    assert {line.search for line in rows} == {"moreau-seed0"}
    (folder / "rows.csv").write_bytes(rows_file(rows))
    assert read_rows(folder / "rows.csv") == {"moreau-seed0": rows}


def test_what_cannot_be_used_is_refused_before_anything_is_written(images, table, tmp_path):
    config, methods = tiny(images), {"darts1": (0,)}
    for named, how in [
        ("--rank", Protocol(rank=5)),
        ("--column", Protocol(column="acc")),
        ("c100", Protocol(table, "c100")),
        ("acc, c10_valid25k_12ep", Protocol(table)),
        ("random", Protocol(baseline="random")),
        ("--rank", Protocol(table, "acc", rank=1)),
        ("absent.csv", Protocol(tmp_path / "absent.csv")),
    ]:
        with pytest.raises(InputError, match=named):
            compare(config, methods, tmp_path / "c", protocol=how)
    with pytest.raises(InputError, match="--jobs"):
        compare(config, methods, tmp_path / "c", jobs=0)
    with pytest.raises(InputError, match="toy"):
        compare(tiny(images, "space=toy"), methods, tmp_path / "c", protocol=Protocol(table, "acc"))
    with pytest.raises(InputError, match="batch"):
        compare(tiny(images, "search.batch_size=50"), methods, tmp_path / "c", protocol=Protocol(table, "acc"))
    assert not (tmp_path / "c").exists()


def test_a_comparison_goes_on_only_with_its_own_configuration(images, table, here, tmp_path):
    output = tmp_path / "c"
    compare(tiny(images), {"random": (0,)}, output, protocol=Protocol(table, "acc"))
    with pytest.raises(InputError, match="--resume"):
        compare(tiny(images), {"random": (0,)}, output, protocol=Protocol(table, "acc"))
    for override in ("search.epochs=3", "search.channels=3"):
        with pytest.raises(InputError, match=r"search\.epochs=2|search\.channels"):
            compare(tiny(images, override), {"random": (0,)}, output, True, protocol=Protocol(table, "acc"))
    (output / "rows.csv").write_text((output / "rows.csv").read_text().replace("nas_bench_201", "x" * 200))
    with pytest.raises(InputError, match=r"rows\.csv.*files\.json"):
        read_rows(output / "rows.csv")
    (output / "files.json").unlink()
    with pytest.raises(InputError, match="line 2"):
        read_rows(output / "rows.csv")


def test_the_command_line(images, table, here, tmp_path, capsys):
    words = [
        "compare",
        "--data",
        images,
        "--methods",
        "darts1,random",
        "--table",
        str(table),
        "--column",
        "acc",
        "--output",
        str(tmp_path / "c"),
        *TINY,
    ]
    assert cli.main([*words, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["to do"] == ["darts1-seed0", "random-seed0"]
    assert cli.main([*words, "--baseline", "darts1"]) == 0
    shown = capsys.readouterr().out
    assert "convolution-only cells (exact)" in shown and "p against darts1" in shown and "near the best" in shown
    assert cli.main([*words, "--resume", "--json"]) == 0
    assert [line["method"] for line in json.loads(capsys.readouterr().out)["rows"]] == ["darts1", "random"]
    assert cli.main([*words, "--resume", "darts1:search.alphas.lr=1"]) == 2
    for wrong in (["--seed", "3"], ["search.method=moreau"], ["seed=3"]):
        assert cli.main([*words, *wrong]) == 2
    assert plan_comparison({"darts1": (0, 1)}, tmp_path / "c")["to do"] == ["darts1-seed1"]


# --- processes and signals ---


def started(images, table, output, *words):
    given = ["--data", images, "--table", str(table), "--column", "acc", "--output", str(output), *TINY, *words]
    return subprocess.Popen(
        [sys.executable, "-m", "nas_moreau", "compare", *given],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path, process):
    for _ in range(3000):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_a_signal_stops_the_search_in_work_and_resume_goes_on(images, table, tmp_path):
    output = tmp_path / "c"
    long = ["--methods", "random:0,darts1:1", "search.epochs=100000"]
    process = started(images, table, output, *long)
    wait_for(output / "searches" / "darts1-seed1" / "metrics.csv", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    last = said.splitlines()[-1]
    assert "nas_moreau compare " in last and last.endswith(" --resume")
    assert [line["search"] for line in read_table(output / "rows.csv")] == ["random-seed0"]
    status = json.loads((output / "searches" / "darts1-seed1" / "status.json").read_text())
    assert status["state"] == "interrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(status["pid"], 0)


@pytest.mark.slow
def test_a_killed_comparison_takes_its_search_with_it_and_repeats_no_finished_row(images, table, tmp_path):
    output = tmp_path / "c"
    process = started(images, table, output, "--methods", "random:0,darts1:1", "search.epochs=12")
    wait_for(output / "searches" / "darts1-seed1" / "metrics.csv", process)
    before = (output / "searches" / "random-seed0" / "log.txt").read_text()
    process.kill()
    process.communicate()
    if sys.platform != "linux":
        pytest.skip("only Linux ends the search with its parent")
    again = started(images, table, output, "--methods", "random:0,darts1:1", "--resume", "search.epochs=12")
    _, said = again.communicate(timeout=300)
    if "in use by process" in said:  # the search was still saving what it had
        again = started(images, table, output, "--methods", "random:0,darts1:1", "--resume", "search.epochs=12")
        _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert (output / "searches" / "random-seed0" / "log.txt").read_text() == before
    assert [line["search"] for line in read_table(output / "rows.csv")] == ["random-seed0", "darts1-seed1"]
    assert json.loads((output / "searches" / "darts1-seed1" / "result.json").read_text())["steps"] == 12


@pytest.mark.slow
def test_the_memory_of_a_search_is_its_own():
    """ru_maxrss of a process started by a larger one begins at the larger one's."""
    code = (
        "import subprocess, sys; block = bytearray(1 << 30); block[::4096] = b'x' * len(block[::4096]);"
        "print(subprocess.run([sys.executable, '-c', 'import torch; from nas_moreau.training.device import"
        " peak_memory_bytes; print(peak_memory_bytes(torch.device(chr(99) + chr(112) + chr(117))))'],"
        " capture_output=True, text=True).stdout)"
    )
    if sys.platform != "linux":
        pytest.skip("Linux only")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0 < int(found) < 1 << 30


@pytest.mark.slow
def test_a_failed_run_does_not_hold_up_the_others(images, table, tmp_path):
    (tmp_path / "bad.py").write_text(
        "import sys\nfrom nas_moreau.bilevel import register_method\n"
        "from nas_moreau.bilevel.rivals.darts import darts1\n"
        "@register_method('bad', evaluations=2, source='a test')\ndef bad(sizes):\n"
        "    if 'search' in sys.argv[1]:\n        raise RuntimeError('it broke')\n"
        "    return darts1(sizes.alpha, sizes.beta)\n"
    )
    output = tmp_path / "c"
    words = ["--methods", "bad,random", "--seeds", "0", "--jobs", "2", "--import", str(tmp_path / "bad.py")]
    process = started(images, table, output, *words)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1 and "1 runs failed: search bad-seed0 (exit code 1: " in said and "it broke" in said
    assert [line["search"] for line in read_table(output / "rows.csv")] == ["random-seed0"]
    assert "it broke" in (output / "compare.html").read_text() and "bad" not in METHODS
