"""What TensorBoard shows of a search: charts find their curves and no others, pictures say what the weights are."""

from __future__ import annotations

import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from nas_moreau.architecture import derive, load_space
from nas_moreau.cli.watching import gather
from nas_moreau.drawing.cell import draw_pixels, draw_png
from nas_moreau.drawing.heat_map import draw_heat_map
from nas_moreau.runs.board_layout import edge_curves, retraining_charts, search_charts, tag

SPACE = load_space("toy")
COLUMNS = ["epoch", "lower_loss", "upper_loss", "upper_objective", "f_theta", "d_x", "d_y", "phi_x(y)", "phi_x(theta)",
           "F_x/c", "gap", "alpha_entropy_normal", "alpha_entropy_reduce", "discretisation_gap"]  # fmt: skip


def uniform():
    return {cell: [[1 / len(SPACE.operations)] * len(SPACE.operations) for _ in SPACE.edges] for cell in SPACE.cells}


def test_every_chart_finds_its_curves_and_no_others():
    charts = search_charts(COLUMNS, SPACE.cells, SPACE.edges, SPACE.operations)
    tags = [tag("epoch", name) for name in COLUMNS] + list(edge_curves(uniform(), SPACE.edges, SPACE.operations))
    assert len(set(tags)) == len(tags)
    found = {}
    for category, titles in charts.items():
        for title, (kind, patterns) in titles.items():
            assert kind == "Multiline"
            hits = [[name for name in tags if re.match(pattern, name)] for pattern in patterns]
            assert all(len(hit) == 1 for hit in hits), (category, title, hits)
            found[category, title] = [hit[0] for hit in hits]
    assert found["Search", "losses"] == ["epoch/lower_loss", "epoch/upper_loss", "epoch/f_theta"]
    assert found["Moreau envelope", "terms of the alphas' direction d_x"] == [
        "epoch/F_x/c", "epoch/phi_x_y", "epoch/phi_x_theta", "epoch/d_x"]  # fmt: skip
    assert found["Is the cell sound?", "entropy of the alphas"] == [
        "epoch/alpha_entropy_normal", "epoch/alpha_entropy_reduce"]  # fmt: skip
    assert ("Moreau envelope", "residual") not in found  # there is no such column
    edges = [hits for (category, _), hits in found.items() if category.startswith("Softmax")]
    assert len(edges) == len(SPACE.cells) * len(SPACE.edges)
    assert all(len(hits) == len(SPACE.operations) for hits in edges)
    assert len(set(itertools.chain(*edges))) == len(edges) * len(SPACE.operations)


def test_tags_have_no_parentheses():
    """With them the CUSTOM SCALARS page of TensorBoard 2.20 throws, and draws nothing."""
    assert not any(set("()") & set(tag("epoch", name)) for name in COLUMNS)
    curves = edge_curves({"normal": [[1.0]]}, [(0, 2)], ["conv (mine)"])
    assert curves == {"weights_normal/0-2/conv _mine": 1.0}


def test_methods_without_alphas_or_envelope_get_no_empty_charts():
    charts = search_charts(["epoch", "lower_loss", "held_out_accuracy"], (), SPACE.edges, SPACE.operations)
    assert charts == {"Search": {
        "losses": ("Multiline", [r"epoch/lower_loss$"]), "accuracies": ("Multiline", [r"epoch/held_out_accuracy$"]),
    }}  # fmt: skip
    assert list(retraining_charts(["epoch", "train_loss", "lr"])["Retraining"]) == ["losses", "learning rate"]


def rows_of_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> set[int]:
    return set(np.flatnonzero((picture == colour).all(-1).any(-1)).tolist())


@pytest.mark.parametrize("strong", [0, 2, 4])
def test_a_heat_map_is_blue_where_the_weight_is_large_and_framed_where_it_was_chosen(strong):
    operations = ["none", "skip_connect", "sep_conv_3x3", "my (conv) <b>"]
    edges = [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    table = [[0.25] * 4 for _ in edges]
    table[strong] = [1.0, 0.0, 0.0, 0.0]
    plain = draw_heat_map(table, edges, operations, [])
    assert plain.dtype == np.uint8 and plain.shape[2] == 3
    blue, orange = rows_of_colour(plain, (0, 92, 158)), rows_of_colour(plain, (196, 84, 0))
    assert blue == orange and 18 < len(blue) < 24  # one row of the table, and only that
    assert min(blue) == min(rows_of_colour(draw_heat_map([table[strong], *table], [(9, 9), *edges], operations, []),
                                           (0, 92, 158))) + 24 * strong  # fmt: skip
    framed = draw_heat_map(table, edges, operations, [("none", *edges[strong])])
    changed = set(np.flatnonzero((plain != framed).any(-1).any(-1)).tolist())
    assert changed and changed <= blue


def test_a_cell_has_the_same_pixels_in_tensorboard_as_in_a_file():
    weights = uniform()
    genotype = derive(SPACE, {cell: np.log(table) for cell, table in weights.items()})
    pixels = draw_pixels(genotype, weights, SPACE, scale=1.0)
    file = np.asarray(Image.open(io.BytesIO(draw_png(genotype, weights, SPACE, scale=1.0))).convert("RGB"))
    assert pixels.dtype == np.uint8 and pixels.std() > 10
    assert np.array_equal(pixels, file)


def test_several_runs_stand_under_their_own_names(tmp_path):
    for name in ("a, b:c/seed0/search", "d/seed0"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "events").write_text(name)
    runs = [tmp_path / "runs" / name for name in ("a, b:c/seed0", "a, b:c/seed0/search", "d/seed0", "d/../d/seed0")]
    (tmp_path / "links").mkdir()
    place = gather(runs, tmp_path / "links")
    assert (place / "a, b:c" / "seed0" / "search" / "events").read_text() == "a, b:c/seed0/search"
    assert (place / "d" / "seed0" / "events").read_text() == "d/seed0"
    assert sorted(path.name for path in place.iterdir()) == ["a, b:c", "d"]
    assert not (tmp_path / "runs" / "a, b:c" / "seed0" / "search" / "search").exists()  # nothing is written into a run
