"""The data sets that torchvision can download; nothing is downloaded without --download."""

from __future__ import annotations

import socket
import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nas_moreau.data.images import Images, Loaded, Statistics
from nas_moreau.data.omniglot_folder import read_omniglot
from nas_moreau.errors import InputError, first_line

if TYPE_CHECKING:
    from nas_moreau.data.sources import Request

_SECONDS = 60.0


def read_torchvision(name: str, dataset: str, request: Request, statistics: Statistics | None) -> Loaded:
    """Returns a set that torchvision gives as arrays.

    Args:
        name: Of the source, for messages.
        dataset: Class in `torchvision.datasets`.
        request: Its place is where torchvision keeps or puts the files.
        statistics: Published mean and standard deviation of each channel.

    Raises:
        InputError: The files are absent or damaged, or fetching them failed.
    """
    parts = [_open(name, dataset, request, train=train) for train in (True, False)]
    images = []
    for part in parts:
        pixels = torch.as_tensor(np.asarray(part.data), device="cpu")
        pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
        images.append(
            Images(pixels.contiguous(), torch.as_tensor(np.asarray(part.targets), dtype=torch.int64, device="cpu"))
        )
    return Loaded(images[0], images[1], tuple(parts[0].classes), statistics=statistics)


def read_omniglot_sets(request: Request, folder: Path) -> Loaded:
    """Returns both of Omniglot's sets together, as `read_omniglot` reads the `folder` that torchvision puts them into.

    Raises:
        InputError: As `read_torchvision` and `read_omniglot`.
    """
    for background in (True, False):
        _open("omniglot", "Omniglot", request, background=background)
    return read_omniglot(request._replace(place=folder))


def _open(name: str, dataset: str, request: Request, **part: bool) -> Any:
    """Returns torchvision's own data set object; a stalled connection is given up after a minute."""
    # slow to import, and most specifications do not need it
    import torchvision.datasets

    kind, directory = getattr(torchvision.datasets, dataset), request.place
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        return kind(str(directory), download=request.download, **part)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise InputError(
            f"{name} could not be downloaded to {directory} ({error}).",
            "Check the connection, or use npz:FILE or folder:DIR.",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        reason = first_line(error, 120).rstrip(".")
        if request.download:
            raise InputError(
                f"{name} could not be prepared in {directory} ({reason}).",
                "Check that the folder is writable and remove damaged files, or use npz:FILE or folder:DIR.",
            ) from error
        shown = "" if "not found" in reason else f" ({reason})"  # torchvision names an argument of its own
        raise InputError(
            f"{name} is incomplete or damaged in {directory}{shown}.",
            "Add --download to fetch it, or use npz:FILE or folder:DIR.",
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
