"""The script that studies steps of the alphas: its tables from searches of a few steps."""

import itertools
import sys

import numpy as np
import pytest

from nas_moreau.architecture import load_space


@pytest.fixture(scope="module")
def script(script_of):
    return script_of("study_alpha_steps")


def test_both_tables_and_kept_records(script, tmp_path, monkeypatch, capsys):
    space = load_space("nas_bench_201")
    lines = ["arch,c10_test_200ep"]
    for cell in itertools.product(space.operations, repeat=6):
        text = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*cell)
        lines.append(f"{text},{10 * cell.count('nor_conv_3x3')}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    tiny = ["channels=2", "epochs=1", "steps_per_epoch=3", "batch_size=4", "image_size=8", "augment.crop=1"]
    words = ["--data", f"npz:{tmp_path / 'data.npz'}", "--table", str(tmp_path / "table.csv"), "--seeds", "0-1"]
    words += ["--output", str(tmp_path / "out"), *(f"search.{word}" for word in tiny)]
    monkeypatch.setattr(sys, "argv", ["study", *words])
    script.main()
    first = capsys.readouterr().out
    assert all(f"| {name} |" in first for name in space.operations)
    rows = [line for line in first.splitlines() if line.startswith(("| F ", "| difference"))]
    assert len(rows) == 3 * len(script.RULES) and all(row.count("|") == 5 for row in rows)
    kept = tmp_path / "out" / "seed0" / "records.npz"
    before = kept.stat().st_mtime_ns
    script.main()
    assert capsys.readouterr().out == first and kept.stat().st_mtime_ns == before


def test_records_are_the_gradients_in_the_weights(script):
    """Five equal gradients sum to zero against their mean; one that differs by a constant is found with its sign."""
    steps = np.zeros((50, 6, 5), dtype=np.float32)
    steps[..., 3] = -1.0
    steps += np.random.default_rng(0).normal(0, 0.01, steps.shape).astype(np.float32)
    rows = script.by_operation([{"F_x": steps, "difference": steps}], list("abcde"))
    means = [float(row[1]) for row in rows]
    assert means[3] == pytest.approx(-800, abs=5) and means[0] == pytest.approx(200, abs=5)
