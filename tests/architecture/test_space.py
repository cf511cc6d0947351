"""Search spaces: the built-in ones, everything that a YAML file can have wrong, sizes, random genotypes, membership."""

from __future__ import annotations

import itertools
import math
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_moreau.architecture.spaces.derivation import derive
from nas_moreau.architecture.spaces.genotype import Cell, Genotype
from nas_moreau.architecture.spaces.operation_table import OPERATIONS, OperationInfo, check_operations
from nas_moreau.architecture.spaces.skeletons import NAS_BENCH_201
from nas_moreau.architecture.spaces.space import Derivation, SearchSpace, load_space, space_names
from nas_moreau.errors import InputError
from nas_moreau.yaml_files import parse_yaml

VALID = """\
name: mine
skeleton: darts
nodes: 2
operations: [none, skip_connect, sep_conv_3x3]
derivation: {rule: top_edges, edges_per_node: 2, exclude: [none]}
"""


def load_text(tmp_path: Path, text: str) -> SearchSpace:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_space(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        load_text(tmp_path, text)
    assert caught.value.cure
    return caught.value.cause


def test_the_built_in_spaces():
    assert space_names() == [
        "darts",
        "nas_bench_201",
        "robust_darts_s1",
        "robust_darts_s2",
        "robust_darts_s3",
        "robust_darts_s4",
        "toy",
    ]
    for name in space_names():
        assert load_space(name).name == name


def test_darts_is_the_published_space():
    space = load_space("darts")
    assert space.operations == (
        "none",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
    )
    assert space.edges == (
        (0, 2),
        (1, 2),
        (0, 3),
        (1, 3),
        (2, 3),
        (0, 4),
        (1, 4),
        (2, 4),
        (3, 4),
        (0, 5),
        (1, 5),
        (2, 5),
        (3, 5),
        (4, 5),
    )
    assert (space.cells, space.inputs, space.nodes, space.concat) == (("normal", "reduce"), 2, 4, (2, 3, 4, 5))
    assert space.alpha_shape == (14, 8)
    assert space.derivation == Derivation("top_edges", 2, ("none",))
    # 1 * 3 * 6 * 10 pairs of edges, 7 operations on each of 8 kept edges, two cells
    assert space.size() == (180 * 7**8) ** 2


def test_nas_bench_201_is_the_published_space():
    space = load_space("nas_bench_201")
    assert space.operations == ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    assert space.edges == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert (space.cells, space.inputs, space.nodes, space.concat) == (("cell",), 1, 3, (3,))
    assert space.size() == 15_625
    assert "15,625" in str(space)


@pytest.mark.parametrize(
    "name, operations, choices",
    [
        ("robust_darts_s2", ("skip_connect", "sep_conv_3x3"), 2),
        ("robust_darts_s3", ("none", "skip_connect", "sep_conv_3x3"), 2),
        ("robust_darts_s4", ("noise", "sep_conv_3x3"), 2),
    ],
)
def test_robust_darts_spaces_are_darts_with_fewer_operations(name, operations, choices):
    space, darts = load_space(name), load_space("darts")
    assert space.operations == operations
    assert (space.edges, space.concat, len(space.choices)) == (darts.edges, darts.concat, choices)


def test_every_file_begins_with_what_it_is_and_its_command():
    import nas_moreau

    folder = Path(nas_moreau.__file__).parent.parent / "search_spaces"
    if not folder.is_dir():  # installed from a wheel
        folder = Path(nas_moreau.__file__).parent / "search_spaces"
    for name in space_names():
        first, second, *_ = (folder / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        assert first.startswith("# ") and second.startswith("# nas-moreau ")


def test_a_space_of_ones_own_by_path_with_defaults(tmp_path):
    space = load_text(tmp_path, VALID)
    assert space.edges == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert space.concat == (2, 3)
    assert space.size() == (1 * 3 * 2**4) ** 2


def test_edges_and_concat_of_ones_own(tmp_path):
    space = load_text(tmp_path, VALID + "edges: [[2, 3], [0, 2], [0, 3]]\nconcat: [3]\n")
    assert space.edges == ((0, 2), (0, 3), (2, 3))
    assert space.concat == (3,)
    # node 2 has one edge only, node 3 keeps both of its own
    assert space.size() == (2 * 2**2) ** 2
    space.check(space.random_genotype(random.Random(0)))


def test_all_problems_are_told_at_once(tmp_path):
    text = """\
name: "bad name!"
skeleton: dart
nodes: true
operatons: [none]
operations: [sep_conv3x3, skip_connect, skip_connect]
concat: 5
derivation: {rule: top_edge, edges_per_nod: 2, exclude: [max_pool_3x3]}
"""
    cause = refusal(tmp_path, text)
    for part in (
        "name is 'bad name!'",
        "skeleton is 'dart'",
        "did you mean 'darts'?",
        "nodes is True",
        "unknown key 'operatons'",
        "did you mean 'operations'?",
        "unknown operation 'sep_conv3x3' (did you mean 'sep_conv_3x3'?)",
        "'skip_connect' is listed twice",
        "concat is 5",
        "rule is 'top_edge'",
        "did you mean 'top_edges'?",
        "unknown key derivation.edges_per_nod",
        "did you mean 'edges_per_node'?",
        "exclude names 'max_pool_3x3'",
    ):
        assert part in cause


@pytest.mark.parametrize(
    "change, message",
    [
        ("name: 7", "name is 7, not a string"),
        ("skeleton: [darts]", "skeleton is a list"),
        ("nodes: 0", "nodes is 0"),
        ("nodes: 33", "nodes is 33"),
        ("nodes: 123456789123456789123456789", "nodes is a huge integer"),
        ("nodes: 2.0", "nodes is 2.0"),
        ("operations: []", "operations is empty"),
        ("operations: none", "operations is 'none', not a list"),
        ("operations: [none, on]", "operations is a list, not a list of names"),
        ("operations: [none]", "nothing but none"),
        ("edges: some", "edges is 'some'"),
        ("edges: [[0, 2, 1]]", "edges is a list, not"),
        ("edges: [[0, true]]", "edges is a list, not"),
        ("edges: [[0, 2], [0, 2], [0, 3]]", "edge [0, 2] is listed twice"),
        ("edges: [[0, 2]]", "no edge leads to node 3"),
        ("edges: [[0, 2], [3, 3]]", "edge [3, 3] does not begin in an earlier state"),
        ("edges: [[0, 2], [0, 3], [-1, 3]]", "edge [-1, 3] does not begin"),
        ("edges: [[0, 1], [0, 2], [0, 3]]", "edge [0, 1] does not end in an intermediate node (2 to 3)"),
        ("edges: [[0, 4], [0, 2], [0, 3]]", "edge [0, 4] does not end"),
        ("concat: []", "concat is empty"),
        ("concat: [1, 2]", "concat names 1"),
        ("concat: [2, 2]", "concat names node 2 twice"),
        ("concat: [4]", "concat names 4"),
        ("reduction: [1/4, 3/4]", "reduction is a list, not [1/3, 2/3]"),
        ("derivation: top_edges", "derivation is 'top_edges', not a mapping"),
        ("derivation: {}", "derivation.rule is None"),
        ("derivation: {rule: top_edges, edges_per_node: 0}", "edges_per_node is 0"),
        ("derivation: {rule: top_edges}", "edges_per_node is None"),
        ("derivation: {rule: argmax}", "not one of top_edges, all_edges"),
        ("derivation: {rule: all_edges, edges_per_node: 2}", "no meaning for all_edges"),
        ("derivation: {rule: all_edges, exclude: none}", "derivation.exclude is 'none'"),
        ("derivation: {rule: all_edges, exclude: [none, skip_connect, sep_conv_3x3]}", "leaves no operation"),
    ],
)
def test_each_problem_of_a_value(tmp_path, change, message):
    key = change.split(":")[0]
    lines = [line for line in VALID.splitlines() if not line.startswith(key + ":")]
    assert message in refusal(tmp_path, "\n".join([*lines, change]))


@pytest.mark.parametrize("key", ["name", "skeleton", "nodes", "operations", "derivation"])
def test_each_missing_key(tmp_path, key):
    lines = [line for line in VALID.splitlines() if not line.startswith(key + ":")]
    assert refusal(tmp_path, "\n".join(lines)).endswith(f": key '{key}' is missing.")


def test_the_nas_bench_201_skeleton_gives_its_last_node_and_has_no_reduction(tmp_path):
    text = VALID.replace("skeleton: darts", "skeleton: nas_bench_201")
    assert load_text(tmp_path, text).concat == (2,)
    assert "concat must be [2]" in refusal(tmp_path, text + "concat: [1, 2]\n")
    assert "reduction is a list" in refusal(tmp_path, text + "reduction: [1/3, 2/3]\n")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds None, not a mapping"),
        ("- a\n- b\n", "holds a list, not a mapping"),
        ("name: [unclosed\n", "is not valid YAML"),
        ("name: a\nname: b\n", "has the key 'name' twice"),
        ("derivation: {rule: a, rule: b}\n", "has the key 'rule' twice"),
        ("a: &x [1]\nb: *x\n", "uses a YAML alias (*x)"),
        ("a: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
        ("a: 2020-13-45\n", "is not valid YAML"),
        ("a: " + "[" * 5000, "nested more than 8 deep"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML"),
        ("a: \x07\n", "is not valid YAML"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, message):
    assert message in refusal(tmp_path, text)


def test_an_alias_bomb_is_refused_before_anything_is_built():
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for last, this in itertools.pairwise("abcdefghij"):
        bomb += f"{this}: &{this} [{', '.join([f'*{last}'] * 10)}]\n"
    with pytest.raises(InputError, match="alias"):
        parse_yaml(bomb, "bomb", "Mend it.")


@pytest.mark.parametrize("value", ["!!int ''", "!!int _", "!!float ''", "!!timestamp 2024-99-99"])
def test_numbers_without_digits_are_refused(value):
    with pytest.raises(InputError, match="YAML"):
        parse_yaml(f"a: {value}", "a file", "Mend it.")


def test_large_files_binary_files_folders_and_pipes_are_refused(tmp_path):
    assert "larger than 64 KiB" in refusal(tmp_path, "#" * 70_000)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_space(binary)
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    with pytest.raises(InputError, match="not a plain file"):
        load_space(folder)
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="not a plain file"):
        load_space(pipe)
    with pytest.raises(InputError, match="does not exist"):
        load_space(tmp_path / "missing.yaml")


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match="did you mean 'darts'") as caught:
        load_space("dart")
    assert "nas_bench_201" in caught.value.cure


def test_a_built_in_name_belongs_to_its_space(tmp_path):
    with pytest.raises(InputError, match="built-in"):
        load_text(tmp_path, VALID.replace("name: mine", "name: darts"))
    same = """{name: toy, skeleton: darts, nodes: 2, operations: [none, skip_connect, max_pool_3x3, sep_conv_3x3],
        derivation: {rule: top_edges, edges_per_node: 2, exclude: [none]}}"""
    assert load_text(tmp_path, same) == load_space("toy")


def test_spaces_made_in_python_are_checked_too():
    toy = load_space("toy")
    with pytest.raises(InputError, match="unknown operation 'skip'"):
        replace(toy, operations=("none", "skip"))
    with pytest.raises(InputError, match="canonical order"):
        replace(toy, edges=toy.edges[::-1])
    with pytest.raises(InputError, match="concat must be"):
        replace(toy, skeleton=NAS_BENCH_201)


def test_operations_added_at_run_time_are_known(tmp_path, monkeypatch):
    text = VALID.replace("sep_conv_3x3", "my_conv")
    assert "unknown operation 'my_conv'" in refusal(tmp_path, text)
    monkeypatch.setitem(OPERATIONS, "my_conv", OperationInfo("my_conv", "own"))
    assert "my_conv" in load_text(tmp_path, text).operations
    check_operations(["my_conv", "none"], "here")
    with pytest.raises(InputError, match=r"^here: unknown operation 'my_conf' \(did you mean 'my_conv'\?\)"):
        check_operations(["my_conf"], "here")


def test_incoming_edges_are_told_node_by_node():
    assert load_space("nas_bench_201").incoming() == [[0], [1, 2], [3, 4, 5]]
    assert load_space("darts").incoming() == [[0, 1], [2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12, 13]]


def tiny(rule: str, **changes) -> SearchSpace:
    derivation = Derivation("top_edges", 2, ("none",)) if rule == "top_edges" else Derivation("all_edges")
    return replace(
        load_space("toy"), operations=("none", "skip_connect", "sep_conv_3x3"), derivation=derivation, **changes
    )


@pytest.mark.parametrize("rule", ["top_edges", "all_edges"])
def test_size_counts_what_derivation_can_produce(rule):
    """Every way of ranking the edges and choosing operations is put through `derive`; one cell is counted."""
    space = tiny(rule)
    flat = [[0.0] * 3] * 5
    found = set()
    for order in itertools.permutations(range(3)) if rule == "top_edges" else [(0, 0, 0)]:
        for choice in itertools.product(range(3), repeat=5):
            strength = [0, 0, *order]
            logits = [[5.0 + strength[i] if k == choice[i] else 0.0 for k in range(3)] for i in range(5)]
            found.add(derive(space, {"normal": logits, "reduce": flat}).digest())
    # where `none` is excluded, a row with none on top yields the lower of the equal others: nothing new
    assert len(found) == math.isqrt(space.size())


@pytest.mark.parametrize("rule", ["top_edges", "all_edges"])
def test_random_genotypes_are_uniform(rule):
    space = tiny(rule, nodes=1, edges=((0, 2), (1, 2)), concat=(2,)) if rule == "all_edges" else tiny(rule)
    rng = random.Random(0)
    draws = [space.random_genotype(rng).cells["normal"].edges for _ in range(6000)]
    counts = Counter(draws)
    expected = len(draws) / math.isqrt(space.size())
    assert len(counts) == math.isqrt(space.size())
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    # mean d and variance 2 d of the statistic with d degrees of freedom; five deviations
    d = len(counts) - 1
    assert chi_square < d + 5 * math.sqrt(2 * d)


def test_random_genotypes_follow_the_seed():
    space = load_space("darts")
    assert space.random_genotype(random.Random(3)) == space.random_genotype(random.Random(3))
    assert space.random_genotype(random.Random(3)) != space.random_genotype(random.Random(4))


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.sampled_from(space_names()), st.integers(0, 2**32))
def test_random_genotypes_belong_to_their_space_and_to_no_other(name, seed):
    genotype = load_space(name).random_genotype(random.Random(seed))
    load_space(name).check(genotype)
    for other in space_names():
        if other != name:
            with pytest.raises(InputError, match="does not belong"):
                load_space(other).check(genotype)


def test_what_check_says_about_a_genotype_of_another_kind():
    space = load_space("toy")
    cells = {
        "normal": Cell(
            (("none", 0, 2), ("skip_connect", 0, 2), ("sep_conv_5x5", 0, 3), ("skip_connect", 2, 4)), (2, 4)
        ),
        "reduce": Cell((("skip_connect", 0, 2), ("skip_connect", 1, 2), ("skip_connect", 0, 3)), (2, 3)),
    }
    with pytest.raises(InputError) as caught:
        space.check(Genotype("darts", cells))
    for part in (
        "it is of space 'darts'",
        "holds 'none'",
        "holds 'sep_conv_5x5'",
        "did you mean 'sep_conv_3x3'?",
        "an edge from 2 to 4",
        "node 2 of cell normal has 2 edges from 1 places",
        "node 3 of cell reduce has 1 edges",
        "cell normal concatenates [2, 4], not [2, 3]",
    ):
        assert part in caught.value.cause
