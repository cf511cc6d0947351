"""What TensorBoard shows of a stage in addition to its curves: images as they are trained on, network, errors."""

from __future__ import annotations

from collections.abc import Sequence

from nas_moreau.architecture import Genotype
from nas_moreau.data.batches import Batches
from nas_moreau.drawing.confusion import draw_confusion
from nas_moreau.drawing.contact_sheet import contact_sheet
from nas_moreau.drawing.network import Sizes
from nas_moreau.drawing.network_graph import network_graph
from nas_moreau.runs.monitor import Monitor

SHOWN = 20
"""Images of the first batch to show."""


def log_training_images(monitor: Monitor, batches: Batches, classes: Sequence[str], step: int) -> None:
    """Shows the first images of the first batch with their classes, augmented as the network gets them.

    Args:
        monitor: Of the stage; without TensorBoard nothing is drawn.
        batches: What the stage trains on.
        classes: Class names.
        step: The step that they are shown at.
    """
    if not monitor.tensorboard:
        return
    pixels, labels = batches.batch(0)
    names = [classes[label] for label in labels[:SHOWN].tolist()]
    monitor.image("training_images", contact_sheet(batches.part.augment.as_pixels(pixels[:SHOWN]), names), step)


def log_network(monitor: Monitor, genotype: Genotype, sizes: Sizes) -> None:
    """Shows the network on the GRAPHS page.

    Args:
        monitor: Of the stage; without TensorBoard nothing is drawn.
        genotype: The cells.
        sizes: Of the network.
    """
    if monitor.tensorboard:
        monitor.graph(network_graph(genotype, sizes))


def log_confusion(monitor: Monitor, confusion: Sequence[Sequence[int]], classes: Sequence[str], step: int) -> None:
    """Shows the confusion matrix.

    Args:
        monitor: Of the stage; without TensorBoard nothing is drawn.
        confusion: (true class, predicted class) counts.
        classes: Class names.
        step: The step that it belongs to.
    """
    if monitor.tensorboard:
        monitor.image("errors/confusion_matrix", draw_confusion(confusion, classes), step)
