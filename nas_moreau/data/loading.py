"""From a specification such as ``shapes`` or ``npz:FILE`` to `Data`."""

from __future__ import annotations

from pathlib import Path

from nas_moreau.data.generated_shapes import CLASSES, generate_shapes
from nas_moreau.data.images import Data, channel_statistics
from nas_moreau.data.npz_file import read_npz
from nas_moreau.errors import InputError


def load_data(
    spec: str, directory: str | Path = "data", download: bool = False, image_size: int | None = None, seed: int = 0
) -> Data:
    kind, _, rest = spec.partition(":")
    if kind == "shapes":
        train, test, classes = generate_shapes(4000, seed, "train"), generate_shapes(1000, seed, "test"), CLASSES
    elif kind == "npz":
        train, test, classes = read_npz(Path(rest))
    else:
        raise InputError(f"Unknown data '{spec}'.", "Use shapes or npz:FILE.")
    mean, std = channel_statistics(train.pixels)
    return Data(spec, classes, train, test, mean, std)
