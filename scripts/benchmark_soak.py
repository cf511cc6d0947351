"""Thousands of epochs in one process: does its memory grow, do files stay open?

    python scripts/benchmark_soak.py [--epochs 2000]

Searches the toy space (1 channel, 2 cells, 1 step an epoch, on 60 random images of 8x8) with everything that an epoch
writes: tables, TensorBoard, drawing, checkpoint. Memory is the resident set after the first tenth and at the end.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from faults.toy import import_everything, make_toy


def resident() -> int:
    """Returns the bytes of memory that the process holds now (Linux)."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def soak(epochs: int, folder: Path) -> dict[str, Any]:
    """Returns memory and open files after a tenth of the epochs and at the end."""
    from nas_moreau.config import load_config
    from nas_moreau.search.stage import search
    from nas_moreau.training.loop import Hook

    overrides = [f"search.epochs={epochs}", "search.steps_per_epoch=1"]
    config = load_config(path=make_toy(folder)["search"][2], overrides=overrides)
    seen: list[tuple[int, int]] = []
    begin = time.monotonic()

    def count(job: Any, row: dict[str, Any]) -> None:
        epoch = job.counters.epochs
        if epoch % max(1, epochs // 10) == 0:
            seen.append((resident(), len(os.listdir("/proc/self/fd"))))
            print(f"epoch {epoch}: {seen[-1][0] / 2**20:.1f} MiB, {seen[-1][1]} open files", flush=True)

    search(config, folder / "run", hooks=[Hook(on_epoch=count)])
    growth = seen[-1][0] / seen[0][0] - 1
    return {"growth": growth, "files": sorted({files for _, files in seen}), "seconds": time.monotonic() - begin}


def main() -> int:
    """Runs the soak; the exit code is 1 when memory grew by 2 % or the number of open files changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2000)
    args = parser.parse_args()
    import_everything()
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="soak-", dir=place) as folder, open(os.devnull, "w") as quiet:
        errors, sys.stderr = sys.stderr, quiet
        try:
            found = soak(args.epochs, Path(folder))
        finally:
            sys.stderr = errors
    growth, files, seconds = found["growth"], found["files"], found["seconds"]
    print(f"{args.epochs} epochs: memory {100 * growth:+.2f} %, open files {files}, {seconds:.0f} s")
    return int(growth >= 0.02 or len(files) != 1)


if __name__ == "__main__":
    sys.exit(main())
