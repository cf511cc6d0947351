"""What `show` says about a search: verdict, stability, before and after selection, and why each edge is what it is."""

import json
import re

import pytest

from nas_moreau.architecture import AlphaTable, Genotype, derive, load_genotype, load_space
from nas_moreau.cli import main
from nas_moreau.errors import InputError
from nas_moreau.report.choices import alternative_lines, alternatives, choice_lines, explain_search, search_lines

SPACE = load_space("nas_bench_201")
TABLE = [[0.1, 0.2, 0.3, 0.25, 0.15] for _ in SPACE.edges]


@pytest.fixture
def run(tmp_path):
    genotype = derive(SPACE, AlphaTable.from_dict(SPACE, {"alphas": {"cell": TABLE}}))
    lines = ["epoch,cell,edge,operation,weight"]
    for a, b in SPACE.edges:
        lines += [f"0,cell,{a}-{b},{name},{w}" for name, w in zip(SPACE.operations, TABLE[0])]
    (tmp_path / "alphas.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "config.yaml").write_text("space: nas_bench_201\n")
    (tmp_path / "genotype.json").write_text(genotype.to_json())
    return tmp_path


def write_result(run):
    (run / "result.json").write_text(
        json.dumps(
            {
                "verdict": "healthy: 0 of 6 edges are skip_connect",
                "alphas": {"cell": TABLE},
                "digest": Genotype.from_json((run / "genotype.json").read_text()).digest(),
                "stability": {"epochs": 9, "epochs_unchanged": 4, "edges_unchanged": 0.5, "window": 5},
                "before_rule": {"digest": "a" * 16},
                "derived_by": {"rule": "selection"},
                "guard": {"rule": "best", "epoch": 3},
            }
        )
    )


def test_a_finished_search_is_described(run, capsys):
    write_result(run)
    lines = search_lines(str(run))
    digest = Genotype.from_json((run / "genotype.json").read_text()).digest()
    assert lines == [
        "healthy: 0 of 6 edges are skip_connect",
        "unchanged for 4 of 9 epochs at the end; 50 % of its edges stood in all of the last 5",
        f"before (the space's rule): {'a' * 16}, after (selection): {digest}",
        "guard: rule best, epoch 3",
    ]
    assert main(["show", str(run)]) == 0
    assert all(line in capsys.readouterr().out for line in lines[:1])
    assert main(["show", str(run), "--why", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["genotype"]["space"] == "nas_bench_201" and len(shown["edges"]) == 6


@pytest.mark.parametrize("finished", [True, False])
def test_why_an_edge_is_what_it_is(run, capsys, finished):
    if finished:
        write_result(run)
    rows = explain_search(str(run))
    assert [row["edge"] for row in rows] == ["0-1", "0-2", "1-2", "0-3", "1-3", "2-3"]
    assert rows[0]["operation"] == "nor_conv_1x1" and rows[0]["margin"] == pytest.approx(0.05)
    assert main(["show", str(run), "--why"]) == 0
    assert "cell 0-1  nor_conv_1x1 0.300, before nor_conv_3x3 by 0.050" in capsys.readouterr().out


def test_what_is_no_search_has_no_why(run, capsys):
    assert search_lines("DARTS_V2") == [] and search_lines(str(run)) == []
    with pytest.raises(InputError, match="DARTS_V2"):
        explain_search("DARTS_V2")
    assert main(["show", "DARTS_V2", "--why"]) == 2
    (run / "alphas.csv").write_text("epoch,cell,edge,operation,weight\n0,cell,7-8,none,1\n")
    with pytest.raises(InputError, match=re.escape(str(run / "alphas.csv"))):
        explain_search(str(run))


def test_the_closest_other_cells_change_one_operation_each_by_the_least_margin():
    from nas_moreau.architecture import Genotype

    genotype = Genotype.parse("|nor_conv_3x3~0|+|skip_connect~0|none~1|+|nor_conv_3x3~0|none~1|nor_conv_1x1~2|")
    chosen = {f"{a}-{b}": operation for operation, a, b in genotype.cells["cell"].edges}
    margins = {"0-1": 0.3, "0-2": 0.1, "1-2": 0.2, "0-3": None, "1-3": 0.05, "2-3": 0.4}
    rows = [
        {
            "cell": "cell",
            "edge": edge,
            "operation": chosen[edge],
            "kept": edge != "1-3",
            "runner_up": None if margin is None else "avg_pool_3x3",
            "margin": margin,
        }
        for edge, margin in margins.items()
    ]
    found = alternatives(genotype, rows, 3)
    assert [(row["edge"], row["margin"]) for row in found] == [("0-2", 0.1), ("1-2", 0.2), ("0-1", 0.3)]
    for row in found:
        other = {f"{a}-{b}": operation for operation, a, b in row["genotype"]["cells"]["cell"]["edges"]}
        assert other == chosen | {row["edge"]: "avg_pool_3x3"}
    assert len({row["digest"] for row in found} | {genotype.digest()}) == 4
    assert alternative_lines(found)[1] == (
        f"  {found[0]['digest']}  cell 0-2  skip_connect -> avg_pool_3x3, margin 0.100"
    )
    assert alternative_lines([]) == []


def test_a_notebook_shows_the_drawing():
    from nas_moreau.architecture.spaces.zoo import published_cell
    from nas_moreau.drawing.cell import draw_genotype

    genotype = published_cell("NASNet")
    assert genotype._repr_svg_() == draw_genotype(genotype) and "<svg" in genotype._repr_svg_()


def test_an_edge_whose_operation_another_rule_chose_shows_that_of_the_cell():
    genotype = load_genotype("DARTS_V2")
    operation, source, target = genotype.cells["normal"].edges[0]
    row = {
        "cell": "normal",
        "edge": f"{source}-{target}",
        "weight": 0.3,
        "runner_up": None,
        "margin": 0.1,
        "kept": True,
    }
    absent = row | {"edge": "0-99", "operation": operation}
    lines = choice_lines([row | {"operation": operation}, row | {"operation": "none"}, absent], genotype)
    assert "(" not in lines[0] and operation in lines[1] and "not kept" in lines[2]
