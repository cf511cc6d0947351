"""The summary of a comparison by hand, and its page."""

import json
import shlex

import pytest

from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.cli import entry as cli
from nas_moreau.compare.conditions import Conditions
from nas_moreau.compare.protocol import Comparison
from nas_moreau.compare.rows import Row
from nas_moreau.compare.summary import summarise
from nas_moreau.report.comparison import next_step, outcome, percentile_table, render, summary_table


def row(method, seed, rule=None, **values):
    known = {"search": f"{method}-seed{seed}", "digest": "d", "genotype": {}, "arch": None}
    return Row(
        **({"method": method, "seed": seed, "rule": rule, "verdict": "healthy", "idle_share": 0.5} | known | values)
    )


def test_summary_by_hand():
    rows = [
        *(
            row("a", i, table=v, search_seconds=t, search_peak_memory_bytes=m)
            for i, (v, t, m) in enumerate([(0.90, 10, 5), (0.92, 20, 9), (0.94, 30, 7)])
        ),
        *(row("random", i, table=v, verdict="collapsed", idle_share=i / 2) for i, v in enumerate([0.80, 0.82, 0.84])),
        row("a", 0, "selection", table=0.95),
        row("a +selection", 0, table=0.5),  # a method of the user may have any name
    ]
    exact = [{"name": "all cells", "mean": 0.8}]
    lines = summarise(rows, ["random", "a", "a +selection"], "random", exact)
    assert [(line.method, line.rule, line.n) for line in lines] == [
        ("random", None, 3),
        ("a", None, 3),
        ("a", "selection", 1),
        ("a +selection", None, 1),
    ]
    random, a, selected, _ = lines
    assert (a.figure, a.min, a.max) == ("table", 0.90, 0.94)
    assert a.mean == pytest.approx(0.92) and a.std == pytest.approx(0.02)
    assert a.relative_improvement == pytest.approx(15)  # over the table's mean, not over the three random cells
    assert a.p_value == 0.1  # the two most extreme of 20
    assert (a.search_seconds, a.search_peak_memory_bytes, a.collapsed) == (20, 9, 0)
    assert random.p_value is None and random.relative_improvement == pytest.approx(2.5)
    assert (random.collapsed, random.idle_share) == (3, 0.5)
    assert selected.std is None and selected.label == "a +selection"


def test_without_a_table_the_random_rows_are_the_measure():
    rows = [
        row("a", 0, retrained_accuracy=0.6, retrained_held_out_accuracy=0.5),
        row("random", 0, retrained_accuracy=0.5),
        row("random", 1, retrained_accuracy=0.3),
    ]
    found = summarise(rows, ["a", "random"], "random", [])
    assert [(line.figure, line.method) for line in found] == [
        ("retrained_accuracy", "a"),
        ("retrained_accuracy", "random"),
        ("retrained_held_out_accuracy", "a"),
    ]
    assert found[0].relative_improvement == pytest.approx(50)
    assert found[2].relative_improvement is None


def test_percentiles_are_compared_over_seeds():
    rows = [
        *(
            row("a", i, percentile=v, percentile_ridge=v + 4, percentile_trees=v - 4, percentile_of_size=v - 20)
            for i, v in enumerate((90, 92, 94))
        ),
        row("a", 3, verdict="collapsed"),  # a collapsed cell has none
        *(row("random", i, percentile=v, percentile_ridge=v, percentile_trees=v) for i, v in enumerate((40, 50, 60))),
    ]
    lines = summarise(rows, ["a", "random"], "random", [])
    assert [(line.figure, line.method) for line in lines] == [
        (figure, method)
        for figure in ("percentile", "percentile_ridge", "percentile_trees")
        for method in ("a", "random")
    ] + [("percentile_of_size", "a")]  # hardly any random cell is as large as those of "random"
    first = lines[0]
    assert (first.n, first.mean, first.std, first.p_value, first.relative_improvement) == (3, 92, 2, 0.1, None)
    result = {"rows": [line.to_dict() for line in rows], "summary": [line.to_dict() for line in lines]}
    result |= {"baseline": "random", "failed": []}
    head, texts = percentile_table(result)
    assert len(head) == len(texts[0])
    assert texts[0][:6] == ["a", "3", "92.0 ± 2.0", "90.0", "94.0", "0.100"]
    assert texts[0][6:] == ["96.0", "0.100", "88.0", "0.100", "72.0", "–", "1"]
    assert texts[1][:6] == ["random", "3", "50.0 ± 10.0", "40.0", "60.0", "–"] and texts[1][-3:] == ["–", "–", "0"]
    assert "a 92 (n = 3, p 0.100), random 50 (n = 3)" in outcome(result) and "a 72 (n = 3)" in outcome(result)


def test_cells_near_the_best_of_the_table_are_counted():
    rows = [row("a", i, table=value) for i, value in enumerate((0.90, 0.94, 0.95))]
    assert [line.near_best for line in summarise(rows, ["a"], "a", [], 0.94)] == [2]
    assert [line.near_best for line in summarise(rows, ["a"], "a", [])] == [None]


def compared(tmp_path, *groups, command="nas-moreau compare --preset smoke --methods a,random:0-1 --seeds=0 k.l=1"):
    """Returns the result of a comparison with these accuracies of the methods a, random."""
    (tmp_path / "environment.json").write_text(json.dumps({"command": command}))
    rows = [row(m, i, retrained_accuracy=v) for m, group in zip(("a", "random"), groups) for i, v in enumerate(group)]
    return {"rows": [line.to_dict() for line in rows], "failed": []}


@pytest.mark.parametrize(
    ("groups", "seeds"),
    [
        (([0.9], [0.8]), "0-3"),  # the fewest with which a permutation test gets below .05
        # variances 2e-4, difference .01: (1.96 + 0.84)^2 * 4e-4 / 1e-4 = 31.4
        (([0.90, 0.92], [0.89, 0.91]), "0-31"),
        (([0.900, 0.920], [0.899, 0.919]), None),  # thousands
        (([0.9] * 4, [0.8] * 4), None),  # p .029
    ],
)
def test_what_chance_may_explain_gets_more_seeds_where_few_are_enough(tmp_path, groups, seeds):
    todo, best = next_step(compared(tmp_path, *groups), tmp_path), groups[0].index(max(groups[0]))
    args = cli.parse_arguments(shlex.split(todo.command)[1:])
    if seeds is None:
        assert args.verb == "show" and args.name == str(tmp_path / "searches" / f"a-seed{best}")
    else:
        assert args.verb == "compare" and args.resume and args.output == str(tmp_path)
        assert (args.seeds, args.methods, args.preset, args.overrides) == (seeds, "a,random", "smoke", ["k.l=1"])


def test_failed_runs_are_run_again_with_the_same_seeds(tmp_path):
    result = compared(tmp_path, [0.9]) | {"failed": ["search a-seed1"]}
    args = cli.parse_arguments(shlex.split(next_step(result, tmp_path).command)[1:])
    assert args.verb == "compare" and args.resume and (args.seeds, args.methods) == ("0", "a,random:0-1")


def test_a_comparison_of_a_program_has_no_command_to_repeat(tmp_path):
    result = compared(tmp_path, [0.9], [0.8], command="python mine.py")
    assert next_step(result, tmp_path).command.startswith("nas-moreau show")
    assert next_step({"rows": [], "failed": ["x"]}, tmp_path) is None


def test_the_page_escapes_hostile_names(tmp_path):
    hostile = "<script>alert(1)</script>$x$&"
    cell = published_cell("DARTS_V2").to_dict()
    rows = [row(hostile, 0, table=0.5, search="x", arch=hostile, genotype=cell)]
    result = Comparison(
        rows,
        summarise(rows, [hostile], hostile, []),
        conditions=[Conditions(hostile, 3, None, hostile, (hostile,))],
        baseline=hostile,
        baselines=[],
        column=hostile,
        retraining=None,
        ranking=None,
        failed=[hostile],
        space=hostile,
        data=hostile,
        report="",
    ).to_dict()
    folder = tmp_path / "<b>c"
    folder.mkdir()
    page = render(result, {hostile: [[(1.0, 0.5), (2.0, 0.6)]]}, folder)
    assert "<script" not in page and "<b>" not in page and "&lt;script&gt;" in page
    assert summary_table(result, "table")[1][0][2] == "50.00"
