"""Checks of the installation, with a fix for each problem: `nas-moreau doctor`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nas_moreau.architecture import Supernet, load_space
from nas_moreau.bilevel import Bilevel, solve
from nas_moreau.data.sources import SOURCES
from nas_moreau.errors import first_line
from nas_moreau.kernels import build
from nas_moreau.runs.environment import describe_environment
from nas_moreau.training.device import pick_device

REQUIRED = ("torch", "torchvision", "timm", "tensorboard", "pyyaml", "pydantic", "rich", "matplotlib")
OPTIONAL = {"export": ("onnx", "onnxruntime", "onnxscript"), "benchmark": ("scipy", "optuna")}
LITTLE_MEMORY, LITTLE_DISK = 2 << 30, 1 << 30
TOLERANCE = 1e-4  # between native and portable outputs, float32, relative to the largest


class Finding(NamedTuple):
    """One line: what was checked, "ok", "note" or "problem", what was found, and the fix."""

    what: str
    state: str
    found: str
    cure: str = ""


def examine(output: Path, data_directory: Path) -> dict[str, Any]:
    """Returns `usable` (no finding is a problem), `seconds`, and `findings`: what, state, found, cure.

    Args:
        output: Folder for runs; nothing is written there.
        data_directory: Folder of downloaded data sets.
    """
    started = time.monotonic()
    findings = [
        *check_packages(),
        *check_devices(),
        check_memory(),
        check_disk(output),
        check_data(data_directory),
        check_kernels(),
        self_test("solver", solve_by_hand),
        self_test("supernet", compare_paths),
    ]
    return {
        "usable": all(finding.state != "problem" for finding in findings),
        "seconds": time.monotonic() - started,
        "findings": [finding._asdict() for finding in findings],
    }


def check_packages() -> list[Finding]:
    """Returns the versions of Python and of the packages, and which extras are complete."""
    environment = describe_environment()
    rows = [Finding("python", "ok", f"{environment['python']} on {environment['system']}")]
    for name in REQUIRED:
        try:
            rows.append(Finding(name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append(Finding(name, "problem", "not installed", f"pip install {name}"))
    for extra, names in OPTIONAL.items():
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        state = Finding(f"extra {extra}", "ok", ", ".join(names))
        cure = f"pip install 'nas_moreau[{extra}]' if you need it"
        rows.append(Finding(f"extra {extra}", "note", f"without {', '.join(missing)}", cure) if missing else state)
    return rows


def check_devices() -> list[Finding]:
    """Returns the processor and the accelerator."""
    environment = describe_environment()
    cores = f"{environment['processor']}, {environment['processors']} cores, torch uses {environment['threads']}"
    rows = [Finding("processor", "ok", cores)]
    accelerator = environment["accelerator"]
    if accelerator is None:
        cure = "search with --preset cpu; for a GPU install the build of torch for it"
        return [*rows, Finding("accelerator", "note", "none that torch can use", cure)]
    try:
        device = pick_device("auto")
        float(torch.ones(8, device=device).sum())
    except (RuntimeError, ValueError) as error:
        found = f"{accelerator}: {first_line(error)}"
        return [*rows, Finding("accelerator", "problem", found, "repair its driver, or use --device cpu")]
    return [*rows, Finding("accelerator", "ok", accelerator)]


def check_memory() -> Finding:
    """Returns how much memory is available."""
    available = None
    if (file := Path("/proc/meminfo")).exists():
        lines = dict(line.split(":", 1) for line in file.read_text(encoding="utf-8").splitlines() if ":" in line)
        available = int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
    if available is None:
        return Finding("memory", "note", "unknown", "nas-moreau plan estimates the memory of a run")
    text = f"{available / 1e9:.1f} GB available"
    if available < LITTLE_MEMORY:
        return Finding("memory", "note", text, "close other programs; use small batches (nas-moreau plan)")
    return Finding("memory", "ok", text)


def check_disk(output: Path) -> Finding:
    """Returns whether runs can be written to `output`, and the free space there."""
    place = output.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Finding("disk", "problem", f"{place} may not be written to", "choose another folder with --output")
    text = f"{free / 1e9:.1f} GB free at {place}"
    if free < LITTLE_DISK:
        return Finding("disk", "note", text, "free some space: a run of the preset cifar10 keeps about 0.2 GB")
    return Finding("disk", "ok", text)


def check_data(directory: Path) -> Finding:
    """Returns which downloaded data sets are in a folder."""
    downloads = {source.name: source.kept_in for source in SOURCES.values() if source.kept_in}
    found = [name for name, folder in downloads.items() if (directory / folder).exists()]
    text = ", ".join(["shapes (embedded)", *(f"{name} in {directory}" for name in found)])
    if found:
        return Finding("data", "ok", text)
    cure = f"--download fetches {', '.join(downloads)}; folder:DIR reads your own images"
    return Finding("data", "note", text, cure)


def check_kernels() -> Finding:
    """Returns whether native kernels are compiled or can be."""
    what = "native kernels"
    if os.environ.get("NAS_MOREAU_NATIVE", "1") == "0":
        return Finding(what, "note", "switched off by NAS_MOREAU_NATIVE=0", "unset it: a search is faster with them")
    compiler = build.find_compiler()
    if compiler is None:
        cure = "install a C++ compiler (g++ or clang++): a search is several times faster on a CPU"
        return Finding(what, "note", "no C++ compiler; the portable path works", cure)
    if not build.library_path().exists():
        return Finding(what, "ok", f"compiled by {compiler} at first use, in about half a minute")
    if build.load():
        return Finding(what, "ok", f"compiled by {compiler}, in {build.cache_directory()}")
    cure = f"remove {build.cache_directory()} to compile them again; the portable path works"
    return Finding(what, "note", "compiled, but they cannot be loaded", cure)


def self_test(what: str, test: Callable[[], str]) -> Finding:
    """Returns the outcome of a test, which returns a sentence or raises an exception."""
    try:
        return Finding(f"self-test: {what}", "ok", test())
    except Exception as error:  # any failure is a finding
        found = f"{type(error).__name__}: {first_line(error)}"
        return Finding(f"self-test: {what}", "problem", found, "reinstall the package and torch")


def solve_by_hand() -> str:
    """Solves min_x (x - 1)^2 / 2 + y^2 / 2 with y = x; the solution by hand is x = y = 1/2."""
    problem = Bilevel(
        lambda x, y, batch: ((x[0] - 1).square().sum() + y[0].square().sum()) / 2,
        lambda x, y, batch: (x[0] - y[0]).square().sum() / 2,
    )
    start = [torch.zeros(1, dtype=torch.float64, device="cpu")]
    solution = solve(problem, start, start, debias=True)
    error = abs(float(solution.x[0]) - 0.5)
    if not error < 0.05:
        raise ArithmeticError(f"x is {float(solution.x[0]):.3f}, not 0.5")
    return f"a bilevel problem is solved to {error:.1e}"


def compare_paths() -> str:
    """Runs a small supernet forward and backward; if native kernels are compiled, both paths must agree."""
    native = build.library_path().exists() and build.load()
    outputs = []
    for kernels in ("portable", "native")[: 1 + native]:
        torch.manual_seed(0)
        supernet = Supernet(load_space("darts"), 4, 3, kernels=kernels).train()
        images = torch.randn(8, 3, 16, 16, generator=torch.Generator(device="cpu").manual_seed(0), device="cpu")
        out = supernet(images)
        gradients = torch.autograd.grad(out.square().sum(), [*supernet.parameters()], allow_unused=True)
        if not all(g.isfinite().all() for g in (out, *gradients) if g is not None):
            raise ArithmeticError("outputs or gradients are not finite")
        outputs.append(out.detach())
    if not native:
        return "forward and backward are finite (portable path)"
    apart = ((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max()).item()
    if not apart < TOLERANCE:
        raise ArithmeticError(f"native and portable outputs are {apart:.1e} apart")
    return f"native and portable paths agree to {apart:.0e}"
