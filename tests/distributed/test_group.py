"""Groups of processes as torchrun starts them: who writes, kills and restarts, signals, nodes, refusals."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from launching import end, start, torchrun, workers

from nas_moreau.config import load_config
from nas_moreau.runs import load_checkpoint
from nas_moreau.runs.plain_files import read_json
from nas_moreau.runs.tables import read_table
from nas_moreau.search.stage import search

pytestmark = pytest.mark.slow
EPOCHS = 6
KEYS = [
    "space=toy",
    "device=cpu",
    "search.channels=2",
    "search.layers=2",
    f"search.epochs={EPOCHS}",
    "search.steps_per_epoch=6",
    "search.batch_size=4",
    "search.augment.crop=1",
    "checkpoint.every_steps=4",
    "logging.tensorboard=false",
    "retrain.channels=2",
    "retrain.layers=3",
    "retrain.epochs=2",
    "retrain.steps_per_epoch=3",
    "retrain.batch_size=8",
    "retrain.accumulate=2",
    "retrain.auxiliary=false",
    "retrain.augment.crop=1",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """60 images of 8x8 in three classes."""
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    pixels, labels = draw.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels[:30], y_test=labels[:30])
    return f"npz:{path}"


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The main job in two processes that nobody disturbs: its folder, output and messages."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, out, err = torchrun(2, words("run", images, folder, "--json", "logging.tensorboard=true"))
    assert code == 0, err
    return folder, out, err


def words(verb, images, folder, *more):
    return ["-m", "nas_moreau", verb, "--data", images, "--output", str(folder), "--resume", *KEYS, *more]


def outcome(folder):
    """What must not differ between two searches: tensors, cell, and the table without its clock."""
    payload = load_checkpoint(folder / "checkpoints")[0]
    tensors = [t.numpy().tobytes() for t in [*payload["x"], *payload["y"], *payload["buffers"].values()]]
    table = [{k: v for k, v in row.items() if k != "wall_seconds"} for row in read_table(folder / "metrics.csv")]
    result = read_json(folder / "result.json")
    return tensors, table, result["alphas"], result["digest"]


def wait_for_rows(folder, count, group):
    """Waits until the search has done so many epochs."""
    for _ in range(4000):
        if len(read_table(folder / "metrics.csv")) >= count:
            return
        assert group.poll() is None, end(group)
        time.sleep(0.05)
    raise AssertionError(f"{folder} came to no {count} epochs")


def log(folder):
    return (folder / "log.txt").read_text(encoding="utf-8")


def test_the_first_process_alone_writes_and_prints(whole):
    folder, out, err = whole
    result = json.loads(out)  # it is there once, and nothing else
    assert result == read_json(folder / "result.json")
    assert result["search"]["steps"] == 6 * EPOCHS and 0 <= result["retrain"]["test_accuracy"] <= 1
    assert (folder / "report.html").exists()
    for stage in ("search", "retrain"):
        assert read_json(folder / stage / "status.json")["state"] == "finished"
        assert log(folder / stage).count(f"{stage}: started") == 1
        assert len(list((folder / stage / "tensorboard").iterdir())) == 1
    assert [int(row["epoch"]) for row in read_table(folder / "search" / "metrics.csv")] == list(range(EPOCHS))
    assert err.count("run folder: ") == 1 and err.count(f"epoch 3/{EPOCHS}") == 1


def test_a_group_that_loses_a_process_three_times_ends_as_if_it_had_not(whole, images, tmp_path):
    draw = random.Random(0)
    group = start(2, words("search", images, tmp_path), ("--standalone", "--max-restarts=3"))
    for rows in (1, 2, 4):
        wait_for_rows(tmp_path, rows, group)
        time.sleep(draw.random() / 5)
        os.kill(workers(group)[draw.randrange(2)], signal.SIGKILL)
    code, _, err = end(group)
    assert code == 0, err
    assert log(tmp_path).count("search: resumed at step") == 3
    assert outcome(tmp_path) == outcome(whole[0] / "search")


def test_without_restarts_the_others_end_soon_and_the_run_resumes(whole, images, tmp_path):
    group = start(2, words("search", images, tmp_path))
    wait_for_rows(tmp_path, 2, group)
    lost, other = workers(group)[::-1]
    began = time.monotonic()
    os.kill(lost, signal.SIGKILL)
    code, out, err = end(group)
    assert code != 0 and out == ""
    assert time.monotonic() - began < 60
    assert not Path(f"/proc/{other}").exists()
    assert err.count("nas-moreau: ") == 1 and "Another process of this run has ended" in err
    code, _, err = torchrun(2, words("search", images, tmp_path))
    assert code == 0, err
    assert outcome(tmp_path) == outcome(whole[0] / "search")


def test_a_signal_to_one_stops_all_and_one_process_can_go_on(images, tmp_path):
    key = "distributed.sync_batchnorm=true"
    group = start(2, words("search", images, tmp_path / "a", key))
    wait_for_rows(tmp_path / "a", 2, group)
    os.kill(workers(group)[1], signal.SIGTERM)
    code, _, err = end(group)
    assert code != 0 and err.count("Stopped by SIGTERM; everything is saved") == 1
    assert "torchrun --nproc-per-node=2 -m nas_moreau search" in err
    status = read_json(tmp_path / "a" / "status.json")
    assert status["state"] == "interrupted"
    assert load_checkpoint(tmp_path / "a" / "checkpoints")[0]["counters"]["step"] == status["step"] < 6 * EPOCHS
    # the same batches in one process; BatchNorm is the whole batch's in both
    config = load_config(overrides=[*KEYS, key, f"data.name={images}"])
    search(config, tmp_path / "a", resume=True)
    search(config, tmp_path / "b")
    resumed = [line for line in log(tmp_path / "a").splitlines() if "resumed at step" in line]
    assert len(resumed) == 1 and "1 process " in resumed[0] and " 2: " in resumed[0]
    found, alone = (read_table(tmp_path / name / "metrics.csv") for name in "ab")
    assert len(found) == len(alone) == EPOCHS
    for row, other in list(zip(found, alone))[:1]:  # in float32 the rounding grows, to 4 % of the loss by the end
        assert float(row["lower_loss"]) == pytest.approx(float(other["lower_loss"]), rel=2e-3)
        assert float(row["upper_loss"]) == pytest.approx(float(other["upper_loss"]), rel=2e-3)


def test_two_nodes(whole, images, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1")
    agents = [start(1, words("search", images, tmp_path), options) for _ in range(2)]
    for code, _, err in [end(agent) for agent in agents]:
        assert code == 0, err
    assert outcome(tmp_path) == outcome(whole[0] / "search")


EACH = """
import os, sys
from nas_moreau.cli import main
rank = os.environ["RANK"]
os.chdir(os.path.join(sys.argv[1], rank))  # as on a machine of its own: a file of this name there
words = ["search", "--data", "npz:images.npz", "--output", os.path.join(sys.argv[1], "run"), *sys.argv[2:]]
for more in (["search.batch_size=5"], ["--import", "mine.py"], [f"seed={rank}"], []):
    print(f"exit code {main(words + more)}", file=sys.stderr)
"""


def test_what_cannot_be_used_or_differs_is_said_once_before_anything_is_written(images, tmp_path):
    whole = dict(np.load(images.partition(":")[2]))
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
        whole["x_train"][0, 0, 0, 0] ^= rank
        np.savez(tmp_path / str(rank) / "images.npz", **whole)
        (tmp_path / str(rank) / "mine.py").write_text("raise ImportError('not here')\n" * rank, encoding="utf-8")
    (tmp_path / "each.py").write_text(EACH, encoding="utf-8")
    code, out, err = torchrun(2, [str(tmp_path / "each.py"), str(tmp_path), *KEYS])
    assert code == 0 and out == "" and not (tmp_path / "run").exists(), err
    # the process whose module was sound ends because of the other
    assert (err.count("exit code 1"), err.count("exit code 2")) == (1, 7), err
    _, batch, module, command, content = err.split("nas-moreau: ")  # not by lines: what two print may share one
    assert "A batch of 5 images" in batch and "batch_size" in batch and "multiple of 2" in batch
    assert "not here" in module
    assert "seed=1" in command and "ank 1" in command and "ank 0" in command
    assert "images" in content and "ank 1" in content and "ank 0" in content


def test_a_comparison_spreads_its_cells(images, tmp_path):
    names = ("none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")
    lines = ("|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|,50".format(*word) for word in product(names, repeat=6))
    table, output = tmp_path / "table.csv", tmp_path / "comparison"
    table.write_text("\n".join(["arch,acc", *lines]), encoding="utf-8")
    given = [
        "--methods",
        "moreau,random",
        "--table",
        str(table),
        "--json",
        "space=nas_bench_201",
        "search.epochs=1",
    ]
    code, out, err = torchrun(2, words("compare", images, output, *given, "search.layers=1"))
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [(row["method"], row["seed"], row["table"]) for row in rows] == [
        ("moreau", 0, 0.5),
        ("random", 0, 0.5),
    ]
    assert len(read_table(output / "rows.csv")) == 2 and (output / "compare.html").exists()
    for folder in (output / "searches").iterdir():
        assert read_json(folder / "status.json")["state"] == "finished"
    # its process took itself for no member of the group
    assert load_checkpoint(output / "searches" / "moreau-seed0" / "checkpoints")[0]["processes"] == 1
