"""The environment of a run: versions, hardware, commit, command line."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from nas_moreau.text import name_text

_BYTES = ("threads", "torch", "timm", "numpy", "commit", "processor", "accelerator")
"""Entries that bytes of results depend on."""
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "tensorboard", "pydantic", "matplotlib")


def describe_environment(earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns versions, processor, accelerator, threads, commit and command line as plain data.

    Args:
        earlier: On resuming, the environment recorded so far; it is kept under "earlier", oldest first.
    """
    import torch  # takes seconds to load, which reading a folder does not need

    import nas_moreau

    accelerator = None
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        if device is not None:
            module = torch.get_device_module(device)
            name = module.get_device_name() if hasattr(module, "get_device_name") else device.type
            accelerator = f"{torch.accelerator.device_count()} x {name} ({device.type})"
    found: dict[str, Any] = {
        "nas_moreau": nas_moreau.__version__,
        "commit": current_commit(),
        "command": name_text(" ".join([_program(), *map(shlex.quote, sys.argv[1:])])),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "system": platform.platform(),
        "processor": processor_name(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
    }
    if earlier is not None:
        older = dict(earlier)
        found["earlier"] = [*older.pop("earlier", []), older]
    return found


def changes_of_bytes(environment: dict[str, Any]) -> str:
    """Returns what has changed since the session before so that bytes may differ: "threads 1 -> 2, ..."; or nothing.

    Args:
        environment: What `describe_environment` returned.
    """
    earlier = environment.get("earlier") or [environment]
    before, now = ({**entry, **entry.get("packages", {})} for entry in (earlier[-1], environment))
    return ", ".join(
        f"{key} {before[key]} -> {now[key]}"
        for key in _BYTES
        if before.get(key) != now.get(key) and key in before and key in now
    )


def first_command(environment: dict[str, Any]) -> str:
    """Returns the command that began a run; "" where none is recorded."""
    first = (environment.get("earlier") or [environment])[0] or {}
    return str(first.get("command") or "")


def _program() -> str:
    name = Path(sys.argv[0] or "python").name
    return "python -m nas_moreau" if name == "__main__.py" else name


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """Returns the model of the processor, or the system's name for it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def current_commit() -> str | None:
    """Returns the commit of the checkout of this package ("+" if files were changed), or None."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + "+" if _git(root, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):  # git is missing, or does not trust the checkout
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
