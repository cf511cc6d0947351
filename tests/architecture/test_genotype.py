"""Genotypes: canonical equality, JSON, the printed dialects, NAS-Bench-201 strings, and everything that is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_moreau.architecture.spaces.genotype import Cell, Genotype
from nas_moreau.architecture.spaces.operation_table import OPERATIONS, OperationInfo
from nas_moreau.architecture.spaces.space import load_space
from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.errors import InputError

V2 = published_cell("DARTS_V2")
NORMAL = (
    "[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)]"
)
REDUCE = (
    "[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)]"
)
DIALECTS = {
    "range": f"Genotype(normal={NORMAL}, normal_concat=range(2, 6), reduce={REDUCE}, reduce_concat=range(2, 6))",
    "lists": f"Genotype(normal={NORMAL}, normal_concat=[2, 3, 4, 5], reduce={REDUCE}, reduce_concat=[2, 3, 4, 5])",
    "tuple": f"Genotype(normal={NORMAL}, normal_concat=(2, 3, 4, 5,), reduce={REDUCE}, reduce_concat=(5, 4, 3, 2))",
    "assignment": f"DARTS_V2 = Genotype(normal={NORMAL}, normal_concat=range(2,6),reduce={REDUCE}, "
    "reduce_concat=range(2, 6))",
    "log": f"03/21 10:11:12 AM genotype = Genotype(normal={NORMAL}, normal_concat=range(2, 6), reduce={REDUCE}, "
    "reduce_concat=range(2, 6))",
    "lines": f"  Genotype(\n    normal = {NORMAL},\n\tnormal_concat = [2, 3, 4, 5], reduce={REDUCE},\r\n "
    "reduce_concat=[2, 3, 4, 5],\n)\n",
    "positions": f"Genotype({NORMAL}, range(2, 6), {REDUCE}, range(2, 6))",
    "other order": f"Genotype(reduce={REDUCE}, reduce_concat=range(2, 6), normal={NORMAL}, normal_concat=range(2, 6))",
    "quotes": f"Genotype(normal={NORMAL}, normal_concat=[2, 3, 4, 5], reduce={REDUCE}, ".replace("'", '"')
    + "reduce_concat=range(2, 6))",
    "dict": f"{{'normal': {NORMAL}, 'normal_concat': range(2, 6), 'reduce': {REDUCE}, 'reduce_concat': [2, 3, 4, 5]}}",
    "json dict": json.dumps(
        {
            "normal": [
                ["sep_conv_3x3", 0],
                ["sep_conv_3x3", 1],
                ["sep_conv_3x3", 0],
                ["sep_conv_3x3", 1],
                ["sep_conv_3x3", 1],
                ["skip_connect", 0],
                ["skip_connect", 0],
                ["dil_conv_3x3", 2],
            ],
            "normal_concat": [2, 3, 4, 5],
            "reduce": [
                ["max_pool_3x3", 0],
                ["max_pool_3x3", 1],
                ["skip_connect", 2],
                ["max_pool_3x3", 1],
                ["max_pool_3x3", 0],
                ["skip_connect", 2],
                ["skip_connect", 2],
                ["max_pool_3x3", 1],
            ],
            "reduce_concat": [2, 3, 4, 5],
        }
    ),
    "numpy": f"Genotype(normal={NORMAL}, normal_concat=[np.int64(2), np.int64(3), 4, numpy.int32(5)], reduce={REDUCE}, "
    "reduce_concat=range(2, 6))".replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', np.int64(2))"),
    "nested tuples": "Genotype(normal=[(('sep_conv_3x3', 0), ('sep_conv_3x3', 1)), (('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1)), (('sep_conv_3x3', 1), ('skip_connect', 0)), (('skip_connect', 0), ('dil_conv_3x3', 2))], "
    f"normal_concat=[2, 3, 4, 5], reduce={REDUCE}, reduce_concat=[2, 3, 4, 5])",
    "nested lists": "Genotype(normal=[[('sep_conv_3x3', 0), ('sep_conv_3x3', 1)], [('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1)], [('sep_conv_3x3', 1), ('skip_connect', 0)], [('skip_connect', 0), ('dil_conv_3x3', 2)]], "
    f"normal_concat=[2, 3, 4, 5], reduce={REDUCE}, reduce_concat=[2, 3, 4, 5])",
    "weights": "Genotype(normal=[('sep_conv_3x3', 0, 0.13), ('sep_conv_3x3', 1, 1e-05), ('sep_conv_3x3', 0, 0.5), "
    "('sep_conv_3x3', 1, 1), ('sep_conv_3x3', 1, 0.2), ('skip_connect', 0, 0.2), ('skip_connect', 0, 0.2), "
    f"('dil_conv_3x3', 2, 0.2)], normal_concat=[2, 3, 4, 5], reduce={REDUCE}, reduce_concat=[2, 3, 4, 5])",
}


def printed(normal: str, concat: str = "[2]") -> str:
    reduce = "reduce=[('skip_connect', 0), ('skip_connect', 1)], reduce_concat=[2]"
    return f"Genotype(normal={normal}, normal_concat={concat}, {reduce})"


def test_the_json_contract():
    data = json.loads(V2.to_json())
    assert list(data) == ["version", "space", "cells"]
    assert (data["version"], data["space"], list(data["cells"])) == (1, "darts", ["normal", "reduce"])
    assert data["cells"]["normal"]["edges"][-1] == ["dil_conv_3x3", 2, 5]
    assert data["cells"]["reduce"]["concat"] == [2, 3, 4, 5]


def test_the_digest_is_that_of_the_canonical_json():
    """Edges by (to, from, operation), keys sorted, no blanks: written out here by hand."""
    genotype = Genotype(
        "mine",
        {
            "reduce": Cell((("skip_connect", 1, 2), ("skip_connect", 0, 2)), (2,)),
            "normal": Cell((("max_pool_3x3", 0, 3), ("skip_connect", 0, 2), ("avg_pool_3x3", 0, 2)), (3, 2)),
        },
    )
    canonical = (
        '{"cells":{"normal":{"concat":[2,3],"edges":[["avg_pool_3x3",0,2],["skip_connect",0,2],["max_pool_3x3",0,3]]},'
        '"reduce":{"concat":[2],"edges":[["skip_connect",0,2],["skip_connect",1,2]]}},"space":"mine","version":1}'
    )
    assert genotype.digest() == hashlib.sha256(canonical.encode()).hexdigest()[:16]


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.sampled_from(["toy", "darts", "nas_bench_201", "robust_darts_s4"]), st.integers(0, 10**6), st.randoms())
def test_the_order_of_edges_means_nothing_and_all_else_does(name, seed, shuffler):
    space = load_space(name)
    genotype = space.random_genotype(random.Random(seed))
    data = genotype.to_dict()
    for cell in data["cells"].values():
        shuffler.shuffle(cell["edges"])
        shuffler.shuffle(cell["concat"])
    other = Genotype.from_json(json.dumps(data))
    assert other == genotype and hash(other) == hash(genotype) and other.digest() == genotype.digest()
    cell = shuffler.choice(list(data["cells"].values()))
    edge = shuffler.choice(cell["edges"])
    edge[0] = next(op for op in OPERATIONS if op != edge[0])
    changed = Genotype.from_json(data)
    assert changed != genotype and changed.digest() != genotype.digest()


def test_an_edge_that_stands_twice_counts_twice():
    twice = Genotype.parse(printed("[('avg_pool_3x3', 0), ('avg_pool_3x3', 0)]"))
    once = Genotype.parse(printed("[[('avg_pool_3x3', 0)]]"))
    mixed = Genotype.parse(printed("[('avg_pool_3x3', 0), ('avg_pool_3x3', 1)]"))
    assert len({twice, once, mixed}) == 3
    assert twice.cells["normal"].edges == (("avg_pool_3x3", 0, 2), ("avg_pool_3x3", 0, 2))


def test_the_space_is_part_of_a_genotype():
    assert Genotype("mine", V2.cells) != V2
    assert V2 != "darts"


def test_copies_and_pickles_are_equal():
    assert copy.deepcopy(V2) == V2 == pickle.loads(pickle.dumps(V2))
    with pytest.raises(AttributeError):
        V2.space = "other"


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.sampled_from(["toy", "darts", "nas_bench_201"]), st.integers(0, 10**6))
def test_every_form_survives_a_round_trip(name, seed):
    genotype = load_space(name).random_genotype(random.Random(seed))
    assert Genotype.from_json(genotype.to_json()) == Genotype.parse(genotype.to_json()) == genotype
    text = genotype.to_nas_bench_201() if name == "nas_bench_201" else genotype.to_printed()
    assert Genotype.parse(text, space=name) == genotype


@pytest.mark.parametrize("dialect", DIALECTS)
def test_printed_dialects(dialect):
    assert Genotype.parse(DIALECTS[dialect]) == V2


def test_nodes_with_one_edge_or_none_and_the_forgotten_comma():
    genotype = Genotype.parse(
        printed("[[('skip_connect', 0)], (('sep_conv_3x3', 2)), (), (('noise', 1), ('none', 4))]", "[5]")
    )
    assert genotype.cells["normal"] == Cell(
        (("skip_connect", 0, 2), ("sep_conv_3x3", 2, 3), ("noise", 1, 5), ("none", 4, 5)), (5,)
    )
    assert Genotype.parse(genotype.to_printed()) == genotype


def test_five_nodes_with_partial_concat():
    text = published_cell("AmoebaNet").to_printed()
    assert "normal_concat=[4, 5, 6]" in text
    genotype = Genotype.parse(text)
    assert genotype == published_cell("AmoebaNet")
    assert max(edge[2] for edge in genotype.cells["reduce"].edges) == 6


def test_which_space_a_printed_genotype_is_of():
    text = printed("[('sep_conv_3x3', 0), ('noise', 1)]").replace("skip_connect", "sep_conv_3x3")
    assert Genotype.parse(text).space == "robust_darts_s4"
    assert Genotype.parse(text.replace("noise", "skip_connect")).space == "darts"
    assert Genotype.parse(text, space="mine").space == "mine"
    assert Genotype.parse("|none~0|", space="mine").space == "mine"
    assert Genotype.parse(V2.to_json(), space="mine").space == "darts"  # JSON says it itself


def test_nas_bench_201_strings():
    text = "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|"
    genotype = Genotype.parse(f" {text}\n")
    assert genotype.space == "nas_bench_201"
    assert genotype.cells["cell"] == Cell(
        (
            ("nor_conv_3x3", 0, 1),
            ("nor_conv_3x3", 0, 2),
            ("skip_connect", 1, 2),
            ("none", 0, 3),
            ("avg_pool_3x3", 1, 3),
            ("nor_conv_1x1", 2, 3),
        ),
        (3,),
    )
    assert genotype.to_nas_bench_201() == text
    assert Genotype.parse(text.replace("|none~0|avg_pool_3x3~1|", "|avg_pool_3x3~1|none~0|")) == genotype
    load_space("nas_bench_201").check(genotype)


def test_forms_that_a_genotype_has_not():
    with pytest.raises(InputError, match="NAS-Bench-201 string"):
        V2.to_nas_bench_201()
    with pytest.raises(InputError, match="no such form"):
        Genotype.parse("|none~0|").to_printed()
    with pytest.raises(InputError, match="NAS-Bench-201 string"):
        Genotype("mine", {"cell": Cell((("none", 0, 2),), (2,))}).to_nas_bench_201()


@pytest.mark.parametrize(
    "text",
    [
        "|none~0",
        "none~0",
        "|none~0|+",
        "|none~0|+|none~0|",
        "|none~1|",
        "|none~0|+|none~0|none~0|",
        "|none|",
        "||",
        "|none~0|none~1|",
        "|none~0|+|none~0|none~1|none~2|",
        "|no ne~0|",
        "|none~-0|",
        "|none~0x|",
        "|" * 60_000,
        "+".join(["|none~0|"] * 65),
        "|none~" + "9" * 5000 + "|",
    ],
)
def test_bad_nas_bench_201_strings(text):
    with pytest.raises(InputError):
        Genotype.parse(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "value was expected"),
        ("hello", "'hello'"),
        ("Genotype", "'Genotype'"),
        ("Genotype()", "has no normal, normal_concat"),
        ("Genotype(normal=[], normal_concat=[2], reduce=[], reduce_concat=[2])", "normal"),
        (printed("[('skip_connect', 0)]"), "1 pairs"),
        (printed("[('skip_connect', 0), ('skip_connect',)]"), "normal"),
        (printed("[('skip_connect', 0), (0, 'skip_connect')]"), "normal"),
        (printed("[('skip_connect', 0), ('skip_connect', 1.0)]"), "normal"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]", "2.5"), "normal_concat"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]", "'ab'"), "normal_concat"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]", "range(2, 10**9)"), "value was expected"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]", "range(2, 1000000000)"), "range is not"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]", "range(-2, 6)"), "range is not"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]", "range(2, 6, 0)"), "range is not"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]", "range(2, 6)"), "2 pairs"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]", "sorted(range(2, 6))"), "'sorted'"),
        (printed("[('skip_connect', 0), ('skip_connect', 2)]"), "edge from 2 to 2"),
        (printed("[('skip_connect', 0), ('skip_connect', -1)]"), "edge from -1 to 2"),
        (printed("[('skip_conect', 0), ('skip_connect', 1)]"), "did you mean 'skip_connect'"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]", "[2, 2]"), "one twice"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]", "[1, 2]"), "concatenates 1"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]", "[]"), "concatenates no node"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]", "[99]"), "node 99"),
        (printed("[('skip_connect', 0) ('skip_connect', 1)]"), "comma was expected"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)"), "'normal_concat'"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]") + " + 1", "'+ 1'"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]") + " Genotype()", "2 genotypes"),
        (printed("[('skip_connect', 0), ('skip_connect', 1)]").replace("normal_concat", "normal_cat"), "did you mean"),
        (
            printed("[('skip_connect', 0), ('skip_connect', 1)]").replace("normal_concat", "reduce"),
            "field reduce twice",
        ),
        (printed("[Genotype(), ('skip_connect', 1)]"), "'Genotype'"),
        ("{'normal': 1, 2: 3}", "stands where a field was expected"),
        ("{}", "has no normal"),
        ("[1, 2]", "list of numbers"),
        ("['none', 'none']", "list of something else"),
        ("7", "value of another kind"),
    ],
)
def test_bad_printed_genotypes(text, message):
    with pytest.raises(InputError) as caught:
        Genotype.parse(text)
    assert message in caught.value.cause and caught.value.cure and len(str(caught.value)) < 1000


HOSTILE = [
    "__import__('os').system('touch HERE')",
    "Genotype(normal=__import__('os').system('touch HERE'), normal_concat=[2], reduce=[], reduce_concat=[2])",
    "(lambda: open('HERE', 'w'))() or Genotype(normal=[], normal_concat=[], reduce=[], reduce_concat=[])",
    "open('HERE', 'w'); x = Genotype(normal=[], normal_concat=[], reduce=[], reduce_concat=[])",
    "Genotype(*[open('HERE', 'w')])",
    "Genotype(normal=[x for x in open('HERE', 'w')], normal_concat=[2], reduce=[], reduce_concat=[2])",
    'Genotype(normal=f\'{open("HERE", "w")}\', normal_concat=[2], reduce=[], reduce_concat=[2])',
    "Genotype(normal=np.load('HERE'), normal_concat=[2], reduce=[], reduce_concat=[2])",
]
DEEP = [
    "[" * 60_000,
    "(" * 60_000,
    "{'normal':" * 6_000,
    "Genotype(" * 6_000,
    "Genotype" + "()" * 30_000,
    "-" * 60_000,
    "not " * 15_000,
    "a." * 30_000,
    "lambda:" * 9_000,
    "'" * 60_000,
    "9" * 60_000,
    "Genotype(normal=" + "[" * 60_000,
    '{"cells":' + "[" * 60_000,
    '{"cells":' * 7_000,
    '{"cells": ' + "9" * 60_000 + "}",
    " " * 65_000,
    "a" * 65_000,
    "Genotype(" + "1," * 30_000 + ")",
    "1 " * 30_000,
    "\x00" * 1000,
    "0" * 30 + " " * 60_000,
    "Genotype(\\\n" * 5_000,
    '{"cells": {"cell": {"edges": ' + "[" + "[]," * 15_000 + "[]]" + ', "concat": [1]}}, "version": 1, "space": "x"}',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_is_evaluated(text, tmp_path):
    target = tmp_path / "evaluated"
    with pytest.raises(InputError):
        Genotype.parse(text.replace("HERE", str(target)))
    assert not target.exists()


@pytest.mark.parametrize("text", DEEP, ids=[text[:12].encode("unicode_escape").decode() for text in DEEP])
def test_deep_and_long_texts_are_refused_without_deep_recursion(text):
    limit = sys.getrecursionlimit()
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1
    sys.setrecursionlimit(depth + 150)  # a reader that went down the nesting would run into this
    try:
        with pytest.raises(InputError) as caught:
            Genotype.parse(text)
    finally:
        sys.setrecursionlimit(limit)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("read", [Genotype.parse, Genotype.from_json])
def test_a_megabyte_is_refused_by_its_length(read):
    with pytest.raises(InputError, match="1,000,000 characters"):
        read("[" * 1_000_000)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "Genotype(",
                "normal=",
                "normal_concat=",
                "reduce=",
                "reduce_concat=",
                "range(",
                "2",
                "6",
                "[",
                "]",
                "(",
                ")",
                ",",
                "'sep_conv_3x3'",
                "('skip_connect', 0)",
                "{",
                "}",
                ":",
                "'normal'",
                "|none~0|",
                "+",
                "np.int64(",
                "0.5",
                " ",
                "\n",
            ]
        ),
        max_size=30,
    ).map("".join)
)
def test_any_text_is_read_or_refused(text):
    try:
        genotype = Genotype.parse(text)
    except InputError as error:
        assert error.cure
    else:
        assert Genotype.parse(genotype.to_json()) == genotype


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["none", "cell", "", "x"]),
        lambda child: (
            st.lists(child, max_size=3)
            | st.dictionaries(
                st.sampled_from(["version", "space", "cells", "cell", "normal", "edges", "concat"]), child
            )
        ),
        max_leaves=20,
    )
)
def test_any_json_is_read_or_refused(data):
    with pytest.raises(InputError):
        Genotype.from_json(json.dumps(data))
    with pytest.raises(InputError):
        Genotype.from_json({"version": 1, "space": "x", "cells": {"cell": {"edges": data, "concat": data}}})


def whole(**changes) -> str:
    cell = {"edges": [["none", 0, 1]], "concat": [1]}
    data = {"version": 1, "space": "mine", "cells": {"cell": cell}}
    for path, value in changes.items():
        place, *keys = path.split("__")
        target = data if not keys else cell
        target[keys[0] if keys else place] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": 2}, "version 2"),
        ({"version": True}, "version True"),
        ({"version": 1.0}, "version 1.0"),
        ({"space": 3}, "the space is 3"),
        ({"space": ""}, "the space is ''"),
        ({"space": "s" * 101}, "the space is"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"cells": []}, "no 'cells'"),
        ({"cells": {}}, "has the cells none"),
        ({"cells": {"normal": {"edges": [], "concat": []}}}, "has the cells 'normal'"),
        ({"cells": {"cell": []}}, "does not have just edges and concat"),
        ({"cell__more": 1}, "does not have just edges and concat"),
        ({"cell__edges": {}}, "are not lists"),
        ({"cell__edges": []}, "has 0 edges"),
        ({"cell__edges": [["none", 0, 1]] * 501}, "has 501 edges"),
        ({"cell__edges": [["none", 0]]}, "is not [operation, from, to]"),
        ({"cell__edges": [[7, 0, 1]]}, "is not [operation, from, to]"),
        ({"cell__edges": [["none", False, 1]]}, "edge from False to 1"),
        ({"cell__edges": [["none", 0, 1.0]]}, "edge from 0 to 1.0"),
        ({"cell__edges": [["none", 1, 1]]}, "edge from 1 to 1"),
        ({"cell__edges": [["none", 0, 65]]}, "edge from 0 to 65"),
        ({"cell__concat": []}, "no node"),
        ({"cell__concat": [1, 1]}, "one twice"),
        ({"cell__concat": [0]}, "concatenates 0"),
        ({"cell__concat": ["1"]}, "concatenates '1'"),
        ({"cell__concat": [1, 2]}, "gives 2 nodes, not one"),
    ],
)
def test_bad_json(changes, message):
    Genotype.from_json(whole())
    with pytest.raises(InputError) as caught:
        Genotype.from_json(whole(**changes))
    assert message in caught.value.cause and caught.value.cure


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "no 'cells'"),
        ("nonsense", "not valid JSON"),
        ('{"cells": {}, "cells": {}}', "a key twice"),
        ('{"cells": ' + "9" * 5000 + "}", "not valid JSON|no 'cells'"),
    ],
)
def test_texts_that_are_no_json_of_a_genotype(text, message):
    with pytest.raises(InputError, match=message):
        Genotype.from_json(text)


def test_unknown_operations_are_refused_where_they_are_read_and_all_named():
    text = V2.to_json().replace("dil_conv_3x3", "dil_conv3x3").replace("sep_conv_3x3", "sep_conv3x3")
    with pytest.raises(InputError) as caught:
        Genotype.parse(text)
    assert "did you mean 'dil_conv_3x3'" in caught.value.cause and "did you mean 'sep_conv_3x3'" in caught.value.cause


def test_operations_added_at_run_time_can_be_read(monkeypatch):
    text = printed("[('my_conv', 0), ('skip_connect', 1)]")
    monkeypatch.setitem(OPERATIONS, "my_conv", OperationInfo("my_conv", "own"))
    assert Genotype.parse(text).cells["normal"].edges[0] == ("my_conv", 0, 2)
