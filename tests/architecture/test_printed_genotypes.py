"""Genotypes as programs print them: a generator of texts in all dialects and surroundings, and damaged texts."""

from __future__ import annotations

import json
import logging
import random
from typing import NamedTuple

import pytest

from nas_moreau.architecture.spaces.genotype import Cell, Genotype
from nas_moreau.architecture.spaces.zoo import load_genotype, published_cell
from nas_moreau.errors import InputError

OPERATIONS = (
    *("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5"),
    *("dil_conv_3x3", "dil_conv_5x5", "none", "conv_7x1_1x7", "sep_conv_7x7"),
)
OF_201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
LAYOUTS = ("two", "two", "two", "nested", "weighted", "all", "triples")


class Printed(NamedTuple):
    """A text, the name of the genotype that is meant if the text holds several, and that genotype."""

    text: str
    name: str | None
    genotype: Genotype


# -- the generator -----------------------------------------------------------------------------------------------------


class Writer:
    """Writes values in one of the ways in which programs print them, drawn at random but kept within a text."""

    def __init__(self, draw: random.Random):
        self.draw = draw
        self.quote = draw.choice("''\"")
        self.pair = draw.choice(("()", "()", "[]"))
        self.numbers = draw.choice(("plain", "plain", "plain", "np.int64", "tensor", "device"))
        self.texts = draw.choice(("plain", "plain", "plain", "np.str_", "u"))
        self.blank = draw.choice((" ", "", "\n    "))

    def number(self, value: int) -> str:
        if self.numbers == "np.int64":
            return f"np.int64({value})"
        if self.numbers == "tensor":
            return f"tensor({value})"
        return f"tensor({value}, device='xla:0', dtype=torch.int64)" if self.numbers == "device" else str(value)

    def string(self, value: str) -> str:
        text = f"{self.quote}{value}{self.quote}"
        return f"np.str_({text})" if self.texts == "np.str_" else f"u{text}" if self.texts == "u" else text

    def listed(self, items: list[str], ends: str = "[]") -> str:
        comma = "," if ends == "()" and len(items) == 1 else self.draw.choice(("", "", ",")) * bool(items)
        return ends[0] + f",{self.blank}".join(items) + comma + ends[1]

    def edge(self, operation: str, *numbers: int, weight: float | None = None) -> str:
        weights = (
            [] if weight is None else [self.draw.choice((f"{weight:.4f}", f"np.float32({weight})", f"{weight:e}"))]
        )
        items = [self.string(operation), *map(self.number, numbers), *weights]
        return f"{self.pair[0]}{', '.join(items)}{self.pair[1]}"

    def concat(self, nodes: tuple[int, ...]) -> str:
        low, high = min(nodes), max(nodes) + 1
        plain = str(list(nodes))
        if nodes != tuple(range(low, high)):
            return self.draw.choice((plain, str(tuple(nodes)), f"np.array({plain})", f"tensor({plain})"))
        return self.draw.choice(
            (
                *(f"range({low}, {high})", f"range({low},{high})", f"list(range({low}, {high}))", plain),
                *(f"tuple(range({low}, {high}))", f"range({low}, {low}+{high - low})", f"array({plain})"),
                f"range({low} + {high - low} - {high - low}, {high - 1} + 1)",
            )
        )


def random_cell(draw: random.Random, layout: str) -> Cell:
    nodes = draw.choice((4, 4, 4, 2, 3, 5))
    edges = []
    for node in range(2, nodes + 2):
        sources: list[int] = draw.sample(range(node), 2)
        if layout == "all":
            sources = list(range(node))
        elif layout == "nested":
            sources = draw.sample(range(node), draw.randint(0 if node > 2 else 1, min(3, node)))
        elif layout == "triples":
            sources = draw.sample(range(node), draw.randint(1, 2))
        edges += [(draw.choice(OPERATIONS), source, node) for source in sources]
    others = (
        range(2, nodes + 1) if draw.random() < 0.7 else draw.sample(range(2, nodes + 1), draw.randint(0, nodes - 1))
    )
    return Cell(tuple(edges), tuple(sorted({*others, nodes + 1})))


def pairs_text(cell: Cell, layout: str, write: Writer) -> str:
    nodes = range(2, max(cell.concat) + 1)
    if layout == "triples":
        edges = [write.edge(operation, node, source) for operation, source, node in cell.edges]
        write.draw.shuffle(edges)
        return write.listed(edges)
    weight = (lambda: write.draw.random()) if layout == "weighted" else lambda: None
    groups = [
        [write.edge(op, source, weight=weight()) for op, source, to in cell.edges if to == node] for node in nodes
    ]
    if layout == "nested":
        ends = write.draw.choice(("[]", "()"))
        comment = write.draw.choice(("", "  # step 1\n"))
        return "[" + ", ".join(write.listed(group, ends) + comment for group in groups) + "]"
    return write.listed([pair for group in groups for pair in group])


def call_text(cells: dict[str, Cell], layouts: dict[str, str], write: Writer) -> str:
    draw = write.draw
    fields = {}
    for name, cell in cells.items():
        fields[name] = pairs_text(cell, layouts[name], write)
        fields[f"{name}_concat"] = write.concat(cell.concat)
    form = draw.choice(("call", "call", "call", "positions", "dict", "dict()", "ordered", "json"))
    if form == "json" and not {"triples"} & {*layouts.values()}:
        data = {}
        for name, cell in cells.items():
            groups = [[list(e[:2]) for e in cell.edges if e[2] == node] for node in range(2, max(cell.concat) + 1)]
            flat = [pair for group in groups for pair in group]
            data[name] = groups if layouts[name] == "nested" else flat
            data[f"{name}_concat"] = list(cell.concat)
        return json.dumps(data, indent=draw.choice((None, 2)))
    if form == "positions":
        return f"Genotype({', '.join(fields.values())})"
    items = list(fields.items())
    if draw.random() < 0.2:
        draw.shuffle(items)
    if form == "dict":
        return "{" + ", ".join(f"'{name}': {text}" for name, text in items) + "}"
    if form == "ordered":
        return "OrderedDict([" + ", ".join(f"('{name}', {text})" for name, text in items) + "])"
    if form == "dict()":
        return "dict(" + ", ".join(f"{name}={text}" for name, text in items) + ")"
    more = draw.choice(([], [], [("connectN", "None"), ("connects", "None")], [("layout", "'cell'")]))
    equals = draw.choice(("=", " = "))
    between = draw.choice((", ", ",\n  ", ",  # the rest\n    "))
    prefix = draw.choice(("", "", "genotypes.", "module.genotypes."))
    return f"{prefix}Genotype({between.join(f'{name}{equals}{text}' for name, text in [*items, *more])})"


def darts_text(draw: random.Random) -> tuple[str, Genotype]:
    layouts = {name: draw.choice(LAYOUTS) for name in ("normal", "reduce")}
    cells = {name: random_cell(draw, layout) for name, layout in layouts.items()}
    return call_text(cells, layouts, Writer(draw)), Genotype("darts", cells)


def text_of_201(draw: random.Random) -> tuple[str, Genotype]:
    nodes = draw.choice((3, 3, 3, 2, 4))
    groups = [[(draw.choice(OF_201), source) for source in range(node)] for node in range(1, nodes + 1)]
    edges = tuple((op, source, node) for node, group in enumerate(groups, 1) for op, source in group)
    genotype = Genotype("nas_bench_201", {"cell": Cell(edges, (nodes,))})
    string = "+".join("|" + "".join(f"{op}~{source}|" for op, source in group) for group in groups)
    nested = ", ".join("(" + ", ".join(f"('{op}', {source})" for op, source in group) + ",)" for group in groups)
    forms = (string, string, f"Structure({nodes + 1} nodes with {string})", f"Structure([{nested}])", f"[{nested}]")
    text = draw.choice(forms)
    return (text.replace("+|", " + |") if draw.random() < 0.2 and "Structure" not in text else text), genotype


def any_text(draw: random.Random) -> tuple[str, Genotype]:
    return text_of_201(draw) if draw.random() < 0.2 else darts_text(draw)


BEFORE = (
    *("", "DARTS_V2 = ", "genotype = ", "03/21 10:11:12 AM genotype = ", "INFO:root:genotype = ", "Best genotype: "),
    *("2023-05-04 10:11:12,345 - INFO - genotype = ", "[2023-05-04 10:11:12] genotype: ", "\x1b[32mgenotype\x1b[0m = "),
    *("epoch 12 genotype = ", "cells['mine'] = ", "mine: Genotype = \\\n", "{'epoch': 3, 'genotype': ", "\ufeffg = ("),
)
BEHIND = ("", "", "\n", ";", "  # seed 2, 97.3 %", " ;  # the best", "\r\n", ")", ",")
LOG = """03/21 10:10:00 AM gpu device = 0
03/21 10:10:00 AM args = Namespace(arch_learning_rate=0.0003, data='../data', epochs=50, unrolled=True)
03/21 10:10:02 AM param size = 1.930618MB
"""


def generated(seed: int) -> Printed:
    """Returns a text of a seed, alone or in the surroundings of a log, a source file or a message."""
    draw = random.Random(seed)
    text, genotype = any_text(draw)
    place = draw.random()
    if text.startswith("[") and place < 0.85:
        return Printed(draw.choice(("", "\n ")) + text + draw.choice(BEHIND[:5]), None, genotype)
    if place < 0.6:
        return Printed(draw.choice(BEFORE) + text + draw.choice(BEHIND), None, genotype)
    if place < 0.7:
        quote = draw.choice("'\"`")
        return Printed(f"{quote}{text}{quote}", None, genotype)
    line = "03/21 10:11:12 AM genotype = "
    if place < 0.85:  # the log of a search: the last is the result
        text = text if not text.startswith("[") else f"Structure({text})"
        earlier = [f"{line}{darts_text(draw)[0]}\n03/21 10:11:12 AM valid_acc 0.5\n" for _ in range(draw.randint(1, 3))]
        return Printed(LOG + "".join(earlier) + f"{line}{text}\n03/21 10:12:00 AM valid_acc 0.8\n", None, genotype)
    cells = [(f"CELL_{number}", darts_text(draw)[0]) for number in range(draw.randint(1, 3))]
    cells.insert(draw.randint(0, len(cells)), ("MEANT", text if not text.startswith("[") else f"Structure({text})"))
    head = "from collections import namedtuple\n\nGenotype = namedtuple('Genotype', 'normal normal_concat reduce')\n\n"
    return Printed(
        head + "\n\n".join(f"{name} = {cell}" for name, cell in cells) + "\n\nDARTS = MEANT\n", "MEANT", genotype
    )


NUMBER = 1000


def test_a_thousand_texts_are_read_to_the_cell_that_was_printed():
    wrong = []
    for seed in range(NUMBER):
        printed = generated(seed)
        try:
            found = Genotype.parse(printed.text, name=printed.name)
        except InputError as error:
            wrong.append((seed, str(error), printed.text))
            continue
        if found != printed.genotype:
            wrong.append((seed, found.to_json(), printed.text))
    assert not wrong, wrong[0]


# -- damage ------------------------------------------------------------------------------------------------------------


def damaged(text: str, draw: random.Random) -> str:
    """Returns a text with one damage that makes no other cell: no digit becomes another one."""
    place = draw.randrange(len(text))
    kind = draw.choice(
        ("delete", "delete", "insert", "insert", "replace", "swap", "cut", "double", "operation", "case")
    )
    if kind in ("delete", "replace", "double", "swap") and not text[place].isdigit():
        if kind == "delete":
            return text[:place] + text[place + 1 :]
        if kind == "replace":
            return text[:place] + draw.choice("()[]{},='\"|+~x_ ") + text[place + 1 :]
        if kind == "double":
            return text[:place] + text[place] + text[place:]
        return text[:place] + text[place + 1 : place + 2] + text[place] + text[place + 2 :]
    if kind == "cut" and not text.startswith(LOG):  # a log that ends earlier is the log of a shorter search
        return text[:place]
    if kind == "operation":
        return text.replace(draw.choice(("conv", "pool", "skip", "none")), draw.choice(("cov", "Pool", "")), 1)
    if kind == "case":
        return text[:place] + text[place].swapcase() + text[place + 1 :]
    return text[:place] + draw.choice("()[]{},='\"|+~x_ \n.-") + text[place:]


def test_a_thousand_damaged_texts_end_in_a_sentence_or_the_same_cell():
    refusals, wrong = 0, []
    for seed in range(NUMBER):
        printed = generated(seed)
        text = damaged(printed.text, random.Random(-seed))
        try:
            found = Genotype.parse(text, name=printed.name)
        except InputError as error:
            refusals += 1
            if not (error.cause and error.cure and len(str(error)) < 1000):
                wrong.append((seed, str(error), text))
            continue
        if found != printed.genotype:
            wrong.append((seed, found.to_json(), text))
    assert not wrong, (len(wrong), wrong[0])
    assert refusals > NUMBER / 3


# -- single forms ------------------------------------------------------------------------------------------------------

V2 = published_cell("DARTS_V2")
REDUCE = "reduce=[('skip_connect', 0), ('skip_connect', 1)], reduce_concat=[2]"


def normal(pairs: str, concat: str = "range(2, 6)") -> str:
    return f"Genotype(normal={pairs}, normal_concat={concat}, {REDUCE})"


def test_all_edges_of_four_nodes_are_fourteen_pairs():
    pairs = [("max_pool_3x3", source) for node in range(2, 6) for source in range(node)]
    edges = Genotype.parse(normal(str(pairs))).cells["normal"].edges
    assert [(source, node) for _, source, node in edges] == [(a, b) for b in range(2, 6) for a in range(b)]
    assert len(Genotype.parse(normal(str(pairs), "range(2, 9)")).cells["normal"].edges) == 14  # seven nodes, two each


@pytest.mark.parametrize(
    "pairs, concat",
    [
        ([("none", 0), ("none", 1)] * 7, "range(2, 6)"),  # not one from each earlier state
        ([("none", 0), ("none", 1)] * 4, "range(2, 7)"),
        ([("none", 0), ("none", 1)] * 4, "range(2, 5)"),
        ([("none", 0), ("none", 1)] * 3 + [("none", 0)], "range(2, 6)"),
        ([[("none", 0)]] * 4, "range(2, 7)"),
        ([[("none", 0)]] * 4, "[2, 3]"),
        ([("none", 2, 0), ("none", 6, 1)], "range(2, 6)"),
        ([("none", 2, 0), ("none", 3, 3)], "range(2, 6)"),
        ([("none", 2, 0), ("none", 0, 3)], "range(2, 6)"),
        ([("none", 2, 0), ("none", 2, 0)], "range(2, 6)"),
        ([("none", 2, 0), ("none", 1)], "range(2, 6)"),
    ],
)
def test_counts_nodes_and_concat_must_fit(pairs, concat):
    with pytest.raises(InputError, match="normal") as caught:
        Genotype.parse(normal(str(pairs), concat))
    assert caught.value.cure


def test_triples_name_the_node_first():
    text = normal("[('sep_conv_3x3', 2, 0), ('none', 4, 3), ('max_pool_3x3', 5, 0)]")
    assert Genotype.parse(text).cells["normal"].edges == (
        ("sep_conv_3x3", 0, 2),
        ("none", 3, 4),
        ("max_pool_3x3", 0, 5),
    )


@pytest.mark.parametrize(
    "text, cure",
    [
        ("{'normal': [(('none', 0), ('none', 1))], 'normal_concat': [2]}", "reduce=[...]"),
        (f"Genotype(normal=[('none', 0), ('none', 1)], {REDUCE})", "normal_concat=range(2, 6)"),
        ("Genotype(recurrent=[('tanh', 0), ('relu', 1)], concat=range(1, 9))", "convolutional"),
        (normal("[('none', 0), ('none', 1)]", "[2], connectN=[1]"), "connectN"),
        (normal("[('none', 0), ('none', 1)]", "[2], layout='raw_weights'"), "layout"),
        ("[[0, 7, 1, 15, 2, 8], [1, 7, 0, 6]]", "Genotype("),
        ("Structure(3 nodes with |none~0|+|none~0|none~1|+|none~0|none~1|none~2|)", "|op~0|"),
        ("DARTS = Genotype(normal=gene_normal, normal_concat=concat)", "Genotype("),
    ],
)
def test_what_is_refused_comes_with_the_cure(text, cure):
    with pytest.raises(InputError) as caught:
        Genotype.parse(text)
    assert cure in caught.value.cure


@pytest.mark.parametrize(
    "theirs, ours",
    {
        "conv_1x7_7x1": "conv_7x1_1x7",
        "identity": "skip_connect",
        "skip": "skip_connect",
        "zero": "none",
        "sep-conv-3x3": "sep_conv_3x3",
        "sepconv3x3": "sep_conv_3x3",
        "separable_5x5_2": "sep_conv_5x5",
        "dil_conv_3": "dil_conv_3x3",
        "conv_3x3": "nor_conv_3x3",
        "AvgPool": "avg_pool_3x3",
    }.items(),
)
def test_what_other_programs_call_an_operation(theirs, ours):
    with pytest.raises(InputError, match=f"did you mean '{ours}'"):
        Genotype.parse(normal(f"[('{theirs}', 0), ('none', 1)]", "[2]"))


def test_a_file_of_several_cells_lists_their_names_and_gives_the_one_that_is_named(tmp_path):
    file = tmp_path / "genotypes.py"
    other = published_cell("PDARTS")
    file.write_text(f"V2 = {V2.to_printed()}\n\n\nPDARTS: Genotype = {other.to_printed()}\n# OLD = {V2.to_printed()}\n")
    with pytest.raises(InputError) as caught:
        load_genotype(file)
    assert "V2" in caught.value.cause and "PDARTS" in caught.value.cause and f"{file}:PDARTS" in caught.value.cure
    assert load_genotype(f"{file}:PDARTS") == load_genotype(f"{file}:4") == other and load_genotype(f"{file}:V2") == V2
    with pytest.raises(InputError, match="PDARTS"):
        load_genotype(f"{file}:PDART")
    file.write_text(f"V2 = {V2.to_printed()}\nBEST = {V2.to_printed()}\n")
    assert load_genotype(file) == V2  # several names of one cell


SURROUNDINGS = {
    "a web page": lambda text: f"<pre>genotype = {text.replace(chr(39), '&#39;')}</pre>",
    "its attributes": lambda text: text.replace("'", "&#x27;"),
    "its quotes": lambda text: text.replace("'", "&quot;"),
    "a word processor": lambda text: text.replace("'", "\u2019").replace(", ", ",\u00a0"),
    "a cell of a CSV file": lambda text: '3,0.97,"' + text.replace("'", '""') + '"',
    "a cell of a Markdown table": lambda text: f"| V2 | `{text}` | 97.3 % |",
    "a printed sentence": lambda text: f"Genotype: {text}, val acc 0.97",
    "a second column": lambda text: f"{text}; epoch 3",
    "a Japanese keyboard": lambda text: text.translate(str.maketrans("(),=", "\uff08\uff09\uff0c\uff1d")),
    "a page's code": lambda text: f"```python\nV2 = {text}\n```\nAs found in epoch 3, it has 3.3 M parameters.",
}


@pytest.mark.parametrize("where", SURROUNDINGS)
def test_texts_that_other_programs_have_changed(where):
    assert Genotype.parse(SURROUNDINGS[where](V2.to_printed())) == V2


def test_a_spaced_string_of_nas_bench_201():
    text = "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
    spaced = text.replace("|", " | ").replace("+", " + ")
    assert Genotype.parse(spaced) == Genotype.parse(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings_of_files(tmp_path, encoding):
    file = tmp_path / "cell.txt"
    file.write_bytes(V2.to_printed().encode(encoding))
    if encoding != "utf-16-le":
        assert load_genotype(file) == V2
    file.write_bytes(b"genotype = \xff" + V2.to_printed().encode())
    with pytest.raises(InputError, match="not UTF-8") as caught:
        load_genotype(file)
    assert "codec" not in str(caught.value)


def test_the_last_genotype_of_a_log_is_read_and_its_line_noted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "nas_moreau")
    genotypes = [darts_text(random.Random(seed))[0] for seed in range(30)]
    steps = "03/21 10:10:02 AM train 000 2.293e+00 10.937500 53.125000\n" * 50
    lines = [LOG, *(f"{steps}03/21 10:10:02 AM genotype = {text}\n" for text in [*genotypes, V2.to_printed()])]
    (tmp_path / "log.txt").write_text("".join(lines))
    assert (tmp_path / "log.txt").stat().st_size > 64 * 1024 and load_genotype(tmp_path / "log.txt") == V2
    number = "".join(lines).count("\n")
    assert f"31 genotypes named 'genotype'; read is the last, of line {number}" in caplog.text


def test_a_damaged_genotype_in_a_log_does_not_give_way_to_an_earlier_one():
    earlier, last = (f"03/21 10:11:12 AM genotype = {cell.to_printed()}\n" for cell in (V2, published_cell("PDARTS")))
    for text in (last.replace("Genotype(", "Genotyp("), last[: len(last) // 2], last.replace("concat", "cncat", 1)):
        with pytest.raises(InputError):
            Genotype.parse(earlier + text)
