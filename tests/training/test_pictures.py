"""What TensorBoard shows beside curves: images as they are trained on, the network as a graph, the confusion matrix."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nas_moreau.architecture import Genotype, load_space
from nas_moreau.architecture.spaces.genotype import Cell
from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.data import Augment
from nas_moreau.drawing.cell import draw_pixels
from nas_moreau.drawing.confusion import draw_confusion
from nas_moreau.drawing.network import Sizes
from nas_moreau.drawing.network_graph import network_graph
from nas_moreau.search import search, stage
from nas_moreau.search.random_cell import random_cell
from nas_moreau.training.retrain import retrain


def test_pixels_come_back_from_a_normalised_batch():
    levels = torch.arange(256, dtype=torch.uint8, device="cpu").reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    augment = Augment((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert torch.equal(augment.as_pixels(augment(levels)), levels)


@pytest.mark.parametrize("cell", ["DARTS_V2", "PC_DARTS_cifar"])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_graph_has_every_edge_of_every_cell(cell, auxiliary):
    genotype = published_cell(cell)
    graph = network_graph(genotype, Sizes(36, 6, (3, 32, 32), 10, auxiliary))
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names) and len(names) > 6 * 8
    place = {name: number for number, name in enumerate(names)}
    for node in graph.node:
        assert all(place[read] < place[node.name] for read in node.input)  # nothing reads what comes later
    for number, part in enumerate(genotype.network_parts(36, 6)):
        if part.kind == "cell":
            within = [node for node in graph.node if node.name.startswith(f"{number:02d}_")]
            drawn = sorted(node.op for node in within if node.op not in ("sum", "preprocess", "concatenate"))
            assert drawn == sorted(operation for operation, _, _ in genotype.cells[part.name].edges)
    assert ("auxiliary_head" in names) == auxiliary
    shape = graph.node[-1].attr["_output_shapes"].list.shape[0]
    assert names[-1] == "classifier" and [side.size for side in shape.dim] == [-1, 10]


def test_a_graph_takes_equal_edges_nodes_without_edges_names_with_slashes_and_blocks():
    edges = (("nor_conv_3x3", 0, 1), ("nor_conv_3x3", 0, 1), ("my/op", 1, 3))
    graph = network_graph(Genotype("mine", {"cell": Cell(edges, (3,))}), Sizes(16, 1))
    operations = [node.op for node in graph.node]
    assert operations.count("residual") == 2 and operations.count("zero") == 3
    assert operations.count("nor_conv_3x3") == 6 and operations.count("my/op") == 3
    assert len({node.name for node in graph.node}) == len(operations)
    assert max(node.name.count("/") for node in graph.node) == 2


@pytest.mark.parametrize("n", [2, 10, 12, 30, 41, 200])
def test_a_confusion_matrix_is_dark_where_a_class_goes(n):
    classes = [f"class {i} \N{GREEK SMALL LETTER ALPHA}" for i in range(n)]
    counts = np.zeros((n, n), dtype=int)
    counts[np.arange(n), (np.arange(n) + 1) % n] = 7  # every class is taken for the next one
    picture = draw_confusion(counts.tolist(), classes)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and max(picture.shape) < 1000
    dark = (picture == (0, 92, 158)).all(-1)
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    side = (columns[-1] - columns[0] + 1) / n
    first = dark[rows[0] : rows[0] + 2].any(0).nonzero()[0]
    assert side >= 2 and columns[0] + side * 0.9 <= first[0] and first[-1] < columns[0] + 2 * side
    last = dark[rows[-1] - 1 : rows[-1] + 1].any(0).nonzero()[0]
    assert last[-1] < columns[0] + side


def test_both_stages_show_them(tiny_config, tiny_data, tmp_path):
    config = tiny_config("search.epochs=2", "retrain.epochs=1", "search.method=darts1")
    search(config, tmp_path / "search", data=tiny_data)
    retrain(config, published_cell("DARTS_V2"), tmp_path / "retrain", data=tiny_data)
    for name, tags in (("search", {"training_images"}), ("retrain", {"training_images", "errors/confusion_matrix"})):
        events = EventAccumulator(str(tmp_path / name / "tensorboard"), size_guidance={"images": 0}).Reload()
        assert tags <= set(events.Tags()["images"])
        assert len(events.Images("training_images")) == 1
        shown = Image.open(io.BytesIO(events.Images("training_images")[0].encoded_image_string))
        assert shown.width > 4 * 8
        assert events.Tags()["graph"] == (name == "retrain")


@pytest.mark.parametrize("asked", [False, True])
def test_the_last_cell_shown_is_the_derived_one_and_edges_have_curves_only_if_asked(
    tiny_config, tiny_data, tmp_path, monkeypatch, asked
):
    def derived(*arguments):
        found = original(*arguments)
        seeds = range(20)
        others = (random_cell(load_space(config.space), seed) for seed in seeds)
        return dataclasses.replace(found, genotype=next(cell for cell in others if cell != found.genotype))

    original = stage.derive_by_rule
    config = tiny_config("search.method=darts1", "search.epochs=2", *["logging.edge_weights=true"] * asked)
    if not asked:
        monkeypatch.setattr(stage, "derive_by_rule", derived)
    result = search(config, tmp_path, data=tiny_data)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    last, steps = events.Images("cell")[-1], [image.step for image in events.Images("cell")]
    assert steps == sorted(set(steps)) and (last.step > result.steps) == (not asked)
    expected = draw_pixels(result.genotype, result.alphas, scale=1.0)
    same = np.array_equal(np.asarray(Image.open(io.BytesIO(last.encoded_image_string)).convert("RGB")), expected)
    assert same or asked  # an epoch's cell is drawn with the weights of that epoch
    assert any(tag.startswith("weights_") for tag in events.Tags()["scalars"]) == asked
