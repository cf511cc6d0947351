"""Pictures for TensorBoard: heat maps say what the weights are, a cell has the pixels of its file."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from nas_moreau.architecture import AlphaTable, derive, load_space
from nas_moreau.architecture.spaces.alpha_table import EdgeWeights
from nas_moreau.drawing.cell import draw_pixels, draw_png
from nas_moreau.drawing.heat_map import draw_heat_map

SPACE = load_space("toy")


def rows_of_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> set[int]:
    return set(np.flatnonzero((picture == colour).all(-1).any(-1)).tolist())


@pytest.mark.parametrize("strong", [0, 2, 4])
def test_a_heat_map_is_blue_where_the_weight_is_large_and_framed_where_it_was_chosen(strong):
    operations = ["none", "skip_connect", "sep_conv_3x3", "my (conv) <b>"]
    uniform, sure = (dict(zip(operations, weights)) for weights in ([0.25] * 4, [1.0, 0.0, 0.0, 0.0]))
    rows = [EdgeWeights(edge, uniform) for edge in ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))]
    rows[strong] = EdgeWeights(rows[strong].edge, sure)
    plain = draw_heat_map(rows, [])
    assert plain.dtype == np.uint8 and plain.shape[2] == 3
    blue, orange = rows_of_colour(plain, (0, 92, 158)), rows_of_colour(plain, (196, 84, 0))
    assert blue == orange and 18 < len(blue) < 24  # one row of the table, and only that
    first = rows_of_colour(draw_heat_map([EdgeWeights((9, 9), sure), *rows[:strong]], []), (0, 92, 158))
    assert min(blue) == min(first) + 24 * strong
    framed = draw_heat_map(rows, [("none", *rows[strong].edge)])
    changed = set(np.flatnonzero((plain != framed).any(-1).any(-1)).tolist())
    assert changed and changed <= blue


def test_a_cell_has_the_same_pixels_in_tensorboard_as_in_a_file():
    alphas = AlphaTable.uniform(SPACE)
    genotype = derive(SPACE, alphas)
    pixels = draw_pixels(genotype, alphas, scale=1.0)
    file = np.asarray(Image.open(io.BytesIO(draw_png(genotype, alphas, scale=1.0))).convert("RGB"))
    assert pixels.dtype == np.uint8 and pixels.std() > 10
    assert np.array_equal(pixels, file)
