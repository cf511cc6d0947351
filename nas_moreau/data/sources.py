"""Data sources by name: the table behind `--data`, `load_data`, help, `list sources` and `doctor`. Imports no torch.

A specification is the name of a source (`shapes`, `cifar10`), or NAME:PLACE where it reads files (`folder:photos`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nas_moreau.data.mistaken_paths import check_path, line_for_other
from nas_moreau.errors import InputError, nearest
from nas_moreau.text import path_of

if TYPE_CHECKING:
    from nas_moreau.data.images import Loaded


_LONGEST = 4096  # characters of a path


class Request(NamedTuple):
    """What a source is asked to read.

    Attributes:
        place: The path after the colon; for a source without one, the folder of downloaded sets (`--data-dir`).
        image_size: Requested height and width in pixels, or None. A source may ignore it: `load_data` resizes.
        seed: Seed of a test part that has to be held out, and of generated images.
        download: Whether the source may use the network.
    """

    place: Path
    image_size: int | None = None
    seed: int = 0
    download: bool = False


Read = Callable[[Request], "Loaded"]


class Source(NamedTuple):
    """One row of the table.

    Attributes:
        name: Name in a specification.
        read: Reads the images.
        what: One line for `list sources`.
        place: What follows the colon ("DIR", "FILE"); None for a source without.
        kept_in: For a set that `--download` fetches: its folder below `--data-dir`.
        must_exist: Whether the place is a path ("DIR", "FILE") that is refused where nothing is.
    """

    name: str
    read: Read
    what: str
    place: str | None = None
    kept_in: str | None = None
    must_exist: bool = False

    @property
    def form(self) -> str:
        """The specification's form: `folder:DIR`, or `shapes`."""
        return f"{self.name}:{self.place}" if self.place else self.name


SOURCES: dict[str, Source] = {}
"""Name, with a colon if a place follows -> source."""


def register_source(
    name: str, *, what: str, place: str | None = None, kept_in: str | None = None, must_exist: bool = False
) -> Callable[[Read], Read]:
    """Makes a data source known as `--data NAME:PLACE`; the decorated function reads it.

    The function takes a `Request` and returns `Loaded`. It raises InputError for files that cannot be used.

    Args:
        name: Letters, digits and `_-.`; not taken yet.
        what: One line for `list sources`: what the source reads.
        place: What follows the colon, for messages ("DIR", "FILE"); None for a source without.
        kept_in: For a set that the function downloads: its folder below `--data-dir`, where `doctor` expects it.
        must_exist: Whether the place, "DIR" or "FILE", is a path: it is refused before anything is loaded where nothing
            is, or a device. That it is a folder or a file is for the function to look at.

    Raises:
        InputError: The name is taken or holds other characters.
    """
    key = f"{name}:" if place else name
    if key in SOURCES or not name or not all(c.isalnum() or c in "_-." for c in name):
        raise InputError(
            f"A data source cannot be named '{name}'.", "Use a free name of letters, digits, '_', '-', '.'."
        )

    def register(read: Read) -> Read:
        SOURCES[key] = Source(name, read, what, place, kept_in, must_exist)
        return read

    return register


def source_of(path: str | PathLike[str]) -> str:
    """Returns the specification of images at a path: those of a folder, or arrays of an .npz file."""
    return f"{'npz' if Path(path).suffix == '.npz' else 'folder'}:{os.fspath(path)}"


def find_source(spec: str) -> tuple[Source, str]:
    """Returns the source of a specification, and the text after the colon ("" for none).

    Raises:
        InputError: Unknown source, or a specification without its place.
    """
    if len(spec) > _LONGEST:
        raise InputError(f"The data specification '{spec[:20]}...' has {len(spec):,} characters.", "Write a path.")
    name, colon, place = spec.partition(":")
    source = SOURCES.get(name + colon)
    if source is not None and (place or not colon):
        return source, place
    if f"{name}:" in SOURCES:
        source = SOURCES[f"{name}:"]
        raise InputError(f"The data specification '{spec}' lacks its {source.place}.", f"Write {source.form}.")
    if name in SOURCES:
        raise InputError(f"The data source '{name}' takes nothing after a colon.", f"Write {name}.")
    cure = line_for_other(spec)
    if cure is not None and (nearest(name, SOURCES) is None or path_of(spec).exists()):
        raise InputError(f"The data specification '{spec}' does not begin with the name of a source.", cure)
    forms = ", ".join(source.form for source in SOURCES.values())
    near = nearest(name, {source.name for source in SOURCES.values()})
    if near is None:
        raise InputError(f"Unknown data source '{spec}'.", f"Known are {forms}.")
    source = SOURCES.get(f"{near}:" if colon else near) or SOURCES.get(near) or SOURCES[f"{near}:"]
    meant = f"{near}:{place}" if source.place and place else source.form
    raise InputError(f"Unknown data source '{spec}'.", f"Did you mean {meant}? Known are {forms}.")


def find_files(spec: str, directory: str | PathLike[str], download: bool) -> tuple[Source, Path]:
    """Returns the source of a specification and where its files are; refuses those that are missing, without torch.

    Args:
        spec: As `find_source` takes it.
        directory: Where downloaded sets are.
        download: Whether a missing set may be downloaded.

    Raises:
        InputError: As `find_source`, or the folder or the file does not exist.
    """
    source, text = find_source(spec)
    place = path_of(text if source.place else os.fspath(directory))
    if source.must_exist:
        kind, mode = "folder" if source.place == "DIR" else "file", _mode(place)
        if mode is None:
            raise InputError(f"The {kind} {place} does not exist.", check_path(source.name, place))
        if mode and not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise InputError(f"{place} is a device or a pipe.", f"Give a {kind}.")
    if source.kept_in is not None and not download and _mode(place / source.kept_in) is None:
        raise InputError(
            f"{source.name} is missing in {place}.", "Add --download to fetch it, or use npz:FILE or folder:DIR."
        )
    return source, place


def _mode(place: Path) -> int | None:
    """Returns type and permissions of a path, None if nothing is there; 0 if only whoever reads it can find out."""
    try:
        return place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError:
        return 0


@register_source("shapes", what="embedded: 10 classes of generated 32x32 RGB images, needs no file")
def _shapes(request: Request) -> Loaded:
    from nas_moreau.data.generated_shapes import read_shapes

    return read_shapes(request)


def _register_torchvision(
    name: str, dataset: str, kept_in: str, statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
) -> None:
    """Registers a set of torchvision: the name of its class, its folder, mean and std as published."""

    @register_source(name, what="torchvision's; --download fetches it", kept_in=kept_in)
    def _read(request: Request) -> Loaded:
        from nas_moreau.data.torchvision_sets import read_omniglot_sets, read_torchvision

        if name == "omniglot":
            return read_omniglot_sets(request, request.place / kept_in)
        return read_torchvision(name, dataset, request, statistics)


_register_torchvision("cifar10", "CIFAR10", "cifar-10-batches-py", ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
_register_torchvision("cifar100", "CIFAR100", "cifar-100-python", ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)))
_register_torchvision("mnist", "MNIST", "MNIST/raw", ((0.1307,), (0.3081,)))
_register_torchvision("fashion_mnist", "FashionMNIST", "FashionMNIST/raw", ((0.2860,), (0.3530,)))
_register_torchvision("omniglot", "Omniglot", "omniglot-py")


@register_source(
    "folder",
    place="DIR",
    must_exist=True,
    what="image files: train/CLASS/* and test/CLASS/*, or CLASS/*; batches of CIFAR",
)
def _folder(request: Request) -> Loaded:
    from nas_moreau.data.image_folder import read_folder

    return read_folder(request)


@register_source(
    "npz",
    place="FILE",
    must_exist=True,
    what="arrays x_train y_train x_test y_test (also Keras' and MedMNIST's names)",
)
def _npz(request: Request) -> Loaded:
    from nas_moreau.data.npz_file import read_npz

    return read_npz(request.place)


@register_source("idx", place="DIR", must_exist=True, what="the four files of MNIST and its relatives, gzipped or not")
def _idx(request: Request) -> Loaded:
    from nas_moreau.data.idx_files import read_idx

    return read_idx(request.place)


@register_source("omniglot", place="DIR", must_exist=True, what="Alphabet/character/*.png")
def _omniglot(request: Request) -> Loaded:
    from nas_moreau.data.omniglot_folder import read_omniglot

    return read_omniglot(request)
