"""From a specification such as `shapes` or `folder:DIR` to `Data`."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from nas_moreau.data.generated_shapes import CLASSES, generate_shapes
from nas_moreau.data.idx_files import read_idx
from nas_moreau.data.image_folder import read_folder
from nas_moreau.data.images import Data, Images, channel_statistics, imbalance_notes
from nas_moreau.data.npz_file import read_npz
from nas_moreau.data.omniglot_folder import read_omniglot
from nas_moreau.data.resizing import POLICY, check_image_size, fit_pixels
from nas_moreau.data.torchvision_sets import NAMES, PUBLISHED, read_torchvision
from nas_moreau.errors import InputError

TRAIN_SHAPES, TEST_SHAPES = 4000, 1000
_PLACES = {"folder": "DIR", "npz": "FILE", "idx": "DIR", "omniglot": "DIR"}
SPECIFICATIONS = ("shapes", *NAMES, *(f"{kind}:{place}" for kind, place in _PLACES.items()))


def load_data(
    spec: str,
    directory: str | Path = "data",
    download: bool = False,
    image_size: int | None = None,
    seed: int = 0,
) -> Data:
    """Returns the data set that `spec` names, on the CPU.

    Args:
        spec: `shapes` (generated, needs no file); `cifar10`, `cifar100`, `fashion_mnist`,
            `omniglot` (torchvision's); `folder:DIR` (train/CLASS/*, test/CLASS/*); `npz:FILE` (uint8
            NHWC `x_train y_train x_test y_test`); `idx:DIR` (MNIST-style files); `omniglot:DIR`
            (Alphabet/character/*.png).
        directory: Where torchvision's sets lie.
        download: Whether torchvision may fetch what is absent.
        image_size: Height and width wished: the shorter side is resized to it, then the centre kept. By
            default images stay as they are if all have one size, else become 32 pixels (Omniglot: 28).
        seed: Seed of `shapes` and of a test part that has to be held out. Keep it fixed when runs are
            compared.

    Returns:
        Pixels, labels, class names, and per channel mean and std: published ones for `cifar10`,
        `cifar100` and `fashion_mnist` by name, else those of the training pixels. `notes` says what was
        done.

    Raises:
        InputError: The specification is unknown, or the files are absent, damaged or not as described.
    """
    check_image_size(image_size)
    kind, colon, rest = spec.partition(":")
    notes: tuple[str, ...] = ()
    if spec == "shapes":
        size = 32 if image_size is None else image_size
        train = generate_shapes(TRAIN_SHAPES, seed, "train", size)
        test = generate_shapes(TEST_SHAPES, seed, "test", size)
        classes = CLASSES
    elif spec in NAMES:
        train, test, classes, notes = read_torchvision(spec, Path(directory).expanduser(), download, image_size, seed)
    elif colon and kind in _PLACES and rest:
        train, test, classes, notes = _read_files(kind, Path(rest).expanduser(), image_size, seed)
    else:
        raise _unknown(spec)
    height, width = train.pixels.shape[2:]
    if image_size is not None and (height, width) != (image_size, image_size):
        train = replace(train, pixels=fit_pixels(train.pixels, image_size))
        test = replace(test, pixels=fit_pixels(test.pixels, image_size))
        notes += (f"Images are {width}x{height}: {POLICY.format(size=image_size)}.",)
    mean, std = PUBLISHED[spec] if spec in PUBLISHED else channel_statistics(train.pixels)
    notes += imbalance_notes(train.labels, classes)
    return Data(spec, classes, train, test, mean, std, notes)


def _read_files(
    kind: str, path: Path, image_size: int | None, seed: int
) -> tuple[Images, Images, tuple[str, ...], tuple[str, ...]]:
    try:
        if kind == "folder":
            return read_folder(path, image_size, seed)
        if kind == "omniglot":
            return read_omniglot(path, image_size, seed)
        return (*(read_npz if kind == "npz" else read_idx)(path), ())
    except PermissionError as error:
        raise InputError(f"{error.filename} may not be read.", "Change its permissions.") from error


def _unknown(spec: str) -> InputError:
    """Returns the error for a specification nobody knows, with the likeliest meaning."""
    kind, colon, rest = spec.partition(":")
    if colon and kind in _PLACES:
        return InputError(f"The data '{spec}' names no {_PLACES[kind]}.", f"Write {kind}:{_PLACES[kind]}.")
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return InputError(f"The data '{spec}' is a folder without its kind.", f"Write folder:{spec}.")
    if spec and path.is_file():
        return InputError(f"The data '{spec}' is a file without its kind.", f"Write npz:{spec}.")
    close = difflib.get_close_matches(kind.lower().replace("-", "_"), ["shapes", *NAMES, *_PLACES], n=1, cutoff=0.5)
    if not close:
        return InputError(f"There is no data '{spec}'.", f"Use one of {', '.join(SPECIFICATIONS)}.")
    meant = f"{close[0]}:{rest or _PLACES[close[0]]}" if close[0] in _PLACES else close[0]
    return InputError(f"There is no data '{spec}'.", f"Did you mean {meant}? Known: {', '.join(SPECIFICATIONS)}.")
