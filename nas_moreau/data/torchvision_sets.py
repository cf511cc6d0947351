"""The data sets torchvision knows how to fetch; nothing is downloaded unless asked for."""

from __future__ import annotations

import socket
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas_moreau.data.images import Images
from nas_moreau.data.omniglot_folder import read_omniglot
from nas_moreau.errors import InputError, first_line

PUBLISHED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
}
"""Mean and standard deviation as commonly published."""
_CLASS_NAMES = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "fashion_mnist": "FashionMNIST",
    "omniglot": "Omniglot",
}
NAMES = tuple(_CLASS_NAMES)
_SECONDS = 60.0


def read_torchvision(
    name: str, directory: Path, download: bool = False, image_size: int | None = None, seed: int = 0
) -> tuple[Images, Images, tuple[str, ...], tuple[str, ...]]:
    """Returns training images, test images, class names and notes of one of `NAMES`.

    Omniglot is both of its sets together, read as `read_omniglot` says; `image_size` and `seed` matter to
    it alone.

    Args:
        name: The data set.
        directory: Where torchvision keeps or puts its files.
        download: Whether to fetch what is absent.

    Raises:
        InputError: The files are absent or damaged, or fetching them failed.
    """
    if name == "omniglot":
        for background in (True, False):
            _open(name, directory, download, background=background)
        return read_omniglot(directory / "omniglot-py", image_size, seed)
    parts = [_open(name, directory, download, train=train) for train in (True, False)]
    images = []
    for part in parts:
        pixels = torch.as_tensor(np.asarray(part.data), device="cpu")
        pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
        images.append(
            Images(pixels.contiguous(), torch.as_tensor(np.asarray(part.targets), dtype=torch.int64, device="cpu"))
        )
    return images[0], images[1], tuple(parts[0].classes), ()


def _open(name: str, directory: Path, download: bool, **part: bool) -> Any:
    """Returns torchvision's own data set object; a stalled connection is given up after a minute."""
    # slow to import, and most specifications do not need it
    import torchvision.datasets

    kind = getattr(torchvision.datasets, _CLASS_NAMES[name])
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        return kind(str(directory), download=download, **part)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise InputError(
            f"{name} could not be downloaded to {directory} ({error}).",
            "Check the connection, or use npz:FILE or folder:DIR.",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        reason = first_line(error, 120).rstrip(".")
        if download:
            raise InputError(
                f"{name} could not be made ready in {directory} ({reason}).",
                "Check that the folder is writable and remove damaged files, or use npz:FILE or folder:DIR.",
            ) from error
        raise InputError(
            f"{name} is not in {directory} or is damaged there ({reason}).",
            "Add --download to fetch it, or use npz:FILE or folder:DIR.",
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
