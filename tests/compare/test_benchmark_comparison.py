"""The script of the whole comparison: its commands are understood, its text says what stands in the rows."""

import pytest

from nas_moreau.architecture import load_space
from nas_moreau.cli.entry import parse_arguments
from nas_moreau.compare.nas_bench_table import same_cells
from nas_moreau.compare.protocol import Comparison
from nas_moreau.compare.rows import Row
from nas_moreau.compare.summary import summarise
from nas_moreau.config import load_config
from nas_moreau.search.methods import parse_methods


@pytest.fixture(scope="module")
def script(script_of):
    return script_of("benchmark_comparison")


def test_every_part_is_a_command_with_a_valid_configuration(script, tmp_path):
    parts = script.parts(tmp_path, selection=True)
    assert len({part.name for part in parts}) == len(parts)
    for part in parts:
        args = parse_arguments(["compare", *part.arguments])
        config = load_config(args.preset, None, args.overrides)
        methods = parse_methods(args.methods, args.seeds)
        assert all(seed < 100 for seeds in methods.values() for seed in seeds), "seeds from 100 up are for tuning"
        assert args.column in (None, "c10_test_200ep")
        assert same_cells(load_space(config.space)) is (args.column is not None)
    turned = load_space(str(script.shuffled_space(tmp_path)))
    assert turned.operations == load_space("nas_bench_201").operations[::-1]


def test_the_text_holds_means_and_costs(script):
    rows = [
        Row(
            method,
            0,
            rule,
            search=f"{method}-seed0",
            digest=f"{method} {rule}",
            genotype={},
            arch=None,
            verdict="healthy",
            idle_share=0.25,
            retrained_accuracy=0.5,
            search_seconds=seconds,
            retrain_seconds=900.0,
        )
        for method, rule, seconds in [("a", None, 1700.0), ("a", "selection", 1800.0), ("random", None, 0.0)]
    ]
    result = Comparison(
        rows,
        summarise(rows, ["a", "random"], "random", []),
        conditions=[],
        baseline="random",
        baselines=[],
        column=None,
        retraining=None,
        ranking=None,
        failed=["search b-seed0 (exit code 3)"],
        space="darts",
        data="shapes",
        report="",
    ).to_dict()
    part = script.Part("x", "Heading", "Text.", [])
    text = script.section(part, "nas-moreau compare", result)
    assert "| a +selection | 1 | 50.00 |" in text and "search b-seed0 (exit code 3)" in text
    # one search of 1,800 s with its selection, two retrainings of it and one of the random cell: 1.25 hours
    assert script.cost({"x": result}) == (1, 1.25)
    assert script.markdown(["p|q"], [["1"]]).splitlines()[0] == "| p\\|q |"
