"""The network of a cell as a graph for TensorBoard: a box for every cell of the network, its operations within."""

from __future__ import annotations

import re
from typing import Any

from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.skeletons import resolutions
from nas_moreau.drawing.network import Sizes


def network_graph(genotype: Genotype, sizes: Sizes) -> Any:
    """Returns TensorBoard's `GraphDef`: what every operation reads, and the shapes of what goes from cell to cell.

    Nothing is traced, so that the graph costs milliseconds at any size.

    Args:
        genotype: The cells.
        sizes: Of the network.
    """
    # imported here: tensorboard takes long to load
    from tensorboard.compat.proto.attr_value_pb2 import AttrValue
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    graph = GraphDef()

    def add(name: str, operation: str, reads: list[str], shape: tuple[int, ...] = ()) -> str:
        node = graph.node.add(name=name, op=operation, input=reads)
        if shape:
            sides = [TensorShapeProto.Dim(size=side) for side in (-1, *shape)]
            shapes = AttrValue.ListValue(shape=[TensorShapeProto(dim=sides)])
            node.attr["_output_shapes"].CopyFrom(AttrValue(list=shapes))
        return name

    images = add("images", "images", [], sizes.image)
    parts = genotype.network_parts(sizes.channels, sizes.layers)
    skeleton, ends = genotype.skeleton, list[str]()
    for number, (part, size) in enumerate(zip(parts, resolutions(parts, sizes.image[1:]))):
        shape, box = (part.outputs, *size), f"{number:02d}_{_word(part.name)}"
        reads = [ends[read] for read in part.reads] or [images]
        if part.kind != "cell":
            ends.append(add(box, part.name, reads, shape))
            continue
        states = [
            add(f"{box}/input_{i}", "preprocess" if skeleton.preprocesses else "input", [read])
            for i, read in enumerate(reads)
        ]
        cell = genotype.cells[part.name]
        for node in range(len(states), 1 + max([*cell.concat, *(target for _, _, target in cell.edges)])):
            edges = [(operation, source) for operation, source, target in cell.edges if target == node]
            branches = [
                add(f"{box}/node_{node}/{i}_{_word(operation)}", operation, [states[source]])
                for i, (operation, source) in enumerate(edges)  # numbered: an edge may stand twice
            ]
            states.append(add(f"{box}/node_{node}/sum", "sum" if branches else "zero", branches))
        kept = [states[node] for node in cell.concat]
        ends.append(add(f"{box}/output", "concatenate" if skeleton.concatenates else "output", kept, shape))
    classes = () if sizes.classes is None else (sizes.classes,)
    if sizes.auxiliary and skeleton.auxiliary_place is not None:
        place = skeleton.auxiliary_place(sizes.layers) + 1  # after the stem
        add("auxiliary_head", "classifier", [ends[place]], classes)
    add("classifier", "classifier", [ends[-1]], classes)
    return graph


def _word(name: str) -> str:
    """Returns a name as TensorBoard takes it: a slash would begin a box."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
