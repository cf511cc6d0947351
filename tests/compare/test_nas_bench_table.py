"""Tables of NAS-Bench-201: read whatever the order, refused where a line is wrong, looked up by genotype."""

import gzip
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_moreau.architecture import Genotype, derive, load_space
from nas_moreau.compare.nas_bench_table import arch_string, baselines, load_table, operations_of, same_cells
from nas_moreau.errors import InputError

SPACE = load_space("nas_bench_201")
CELLS = [SPACE.random_genotype(random.Random(seed)).to_nas_bench_201() for seed in range(8)]
SKIP = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
ONE, THREE = SKIP.replace("skip_connect", "nor_conv_1x1"), SKIP.replace("skip_connect", "nor_conv_3x3")
NONE = SKIP.replace("skip_connect", "none")


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@given(st.permutations(range(len(CELLS))), st.permutations(["arch", "flops", "acc"]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_order_of_lines_and_columns_gives_the_same_answers(tmp_path_factory, order, columns, packed):
    numbers = {name: {"arch": name, "flops": str(1000 + i), "acc": repr(90 + i / 7)} for i, name in enumerate(CELLS)}
    lines = [",".join(columns)] + [",".join(numbers[CELLS[i]][column] for column in columns) for i in order]
    data = ("\n".join(lines) + "\n").encode()
    path = tmp_path_factory.mktemp("table") / "table.csv"
    path.write_bytes(gzip.compress(data) if packed else data)
    table = load_table(path)
    assert set(table.columns) == {"flops", "acc"}
    for i, name in enumerate(CELLS):
        assert table.look_up(Genotype.parse(name)) == {"flops": 1000 + i, "acc": 90 + i / 7}


def test_edges_of_a_node_in_another_order_are_the_same_cell(tmp_path):
    text = "arch,acc\n|none~0|+|nor_conv_3x3~1|skip_connect~0|+|none~2|none~1|avg_pool_3x3~0|,50\n"
    table = load_table(written(tmp_path / "t.csv", text))
    twin = "|none~0|+|skip_connect~0|nor_conv_3x3~1|+|avg_pool_3x3~0|none~1|none~2|"
    assert table.look_up(Genotype.parse(twin)) == {"acc": 50.0}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "'arch'"),
        ("cell,acc\n", "'arch'"),
        ("arch\n", "'arch'"),
        ("arch,acc,acc\n", "twice"),
        ("arch,acc\n", "no cell"),
        (f"arch,acc\n{SKIP}\n", "line 2"),
        (f"arch,acc\n{SKIP},1\n{SKIP},2\n", "line 3"),
        (f"arch,acc\n{SKIP},nan\n", "line 2: acc is 'nan'"),
        (f"arch,acc\n{SKIP},\n", "line 2: acc is ''"),
        (f"arch,acc\n{SKIP},good\n", "line 2: acc is 'good'"),
        ("arch,acc\n|skip_connect~0|,1\n", "line 2"),
        (f"arch,acc\n{SKIP.replace('skip_connect', 'sep_conv_3x3')},1\n", "line 2"),
        ("arch,acc\nnonsense,1\n", "line 2"),
        (f'arch,acc\n"{SKIP},1\n', "line 2"),
    ],
)
def test_a_wrong_table_is_refused_with_the_line(tmp_path, text, named):
    path = written(tmp_path / "t.csv", text)
    with pytest.raises(InputError) as caught:
        load_table(path)
    assert named in caught.value.cause and str(path) in caught.value.cause and caught.value.cure


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_no_bytes_end_in_a_traceback(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("table") / "t.csv.gz"
    for whole in (data, b"\x1f\x8b" + data, b"arch,acc\n" + data):
        path.write_bytes(whole)
        with pytest.raises(InputError):
            load_table(path)


def test_a_torn_gzip_file_and_a_missing_one_are_refused(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(f"arch,acc\n{SKIP},1\n".encode())[:-12])
    with pytest.raises(InputError, match="gzip"):
        load_table(path)
    with pytest.raises(InputError, match="No such file"):
        load_table(tmp_path / "absent.csv")


def test_what_the_table_does_not_hold_is_refused(tmp_path):
    table = load_table(written(tmp_path / "t.csv", f"arch,acc\n{SKIP},54.3\n"))
    with pytest.raises(InputError, match=r"\|"):
        table.look_up(Genotype.parse(THREE))
    with pytest.raises(InputError, match="of space 'toy'"):
        table.look_up(load_space("toy").random_genotype(random.Random(0)))
    with pytest.raises(InputError, match="of space 'nas_bench_201'"):
        table.look_up(Genotype.parse("|skip_connect~0|+|skip_connect~0|skip_connect~1|"))


def test_a_space_may_turn_the_operations_round_but_not_leave_one_out(tmp_path):
    table = load_table(written(tmp_path / "t.csv", f"arch,acc\n{SKIP},54.3\n"))
    for name, operations, same in [("turned", SPACE.operations[::-1], True), ("fewer", SPACE.operations[1:], False)]:
        space = replace(SPACE, name=name, operations=operations)
        assert same_cells(space) is same
        found = derive(space, {"cell": [[float(op == "skip_connect") for op in operations]] * 6})
        assert found.space == name and table.look_up(found) == {"acc": 54.3}
    assert (
        not same_cells(load_space("toy")) and arch_string(load_space("toy").random_genotype(random.Random(0))) is None
    )


def test_the_column_is_named_or_plain(tmp_path):
    one = load_table(written(tmp_path / "1.csv", f"arch,acc\n{SKIP},54.3\n"))
    two = load_table(written(tmp_path / "2.csv", f"arch,acc,loss\n{SKIP},54.3,1\n"))
    usual = load_table(written(tmp_path / "3.csv", f"arch,acc,c10_test_200ep\n{SKIP},1,54.3\n"))
    assert one.pick_column() == "acc" and two.pick_column("loss") == "loss"
    assert usual.pick_column() == "c10_test_200ep"
    with pytest.raises(InputError, match="--column"):
        two.pick_column()
    with pytest.raises(InputError, match="Did you mean 'loss'"):
        two.pick_column("los")


def test_percent_and_fractions_are_told_apart_and_other_numbers_refused(tmp_path):
    text = f"arch,percent,fraction,params\n{SKIP},54.3,0.543,73306\n{THREE},93.76,0.9376,1531546\n"
    table = load_table(written(tmp_path / "t.csv", text))
    assert table.accuracies("fraction")[SKIP] == 0.543
    assert table.accuracies("percent")[THREE] == pytest.approx(0.9376, abs=1e-15)
    with pytest.raises(InputError, match="params"):
        table.accuracies("params")


def test_baselines_are_means_over_groups_of_cells(tmp_path):
    mixed = "|nor_conv_1x1~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|nor_conv_3x3~0|nor_conv_1x1~1|nor_conv_3x3~2|"
    lines = [f"{NONE},10", f"{SKIP},50", f"{ONE},90", f"{THREE},94", f"{mixed},95"]
    table = load_table(written(tmp_path / "t.csv", "arch,acc\n" + "\n".join(lines)))
    found = {row["name"]: row for row in baselines(table, "acc")}
    assert {name: row["n"] for name, row in found.items()} == {
        "all cells": 5,
        "cells without none": 4,
        "convolution-only cells": 3,
        "best cell": 1,
    }
    assert found["all cells"]["mean"] == pytest.approx(0.678)
    assert found["cells without none"]["mean"] == pytest.approx(0.8225)
    convolutions = found["convolution-only cells"]
    assert convolutions["mean"] == pytest.approx(0.93)
    # (-3)^2 + 1^2 + 2^2 = 14, over 3 cells
    assert convolutions["std"] == pytest.approx((14 / 3) ** 0.5 / 100)
    assert (convolutions["min"], convolutions["max"], found["best cell"]["mean"]) == (0.9, 0.95, 0.95)
    assert operations_of(mixed) == {"nor_conv_1x1", "nor_conv_3x3"}
