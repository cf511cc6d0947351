"""Search steps a second of one process with one thread, and of two under torchrun with one thread each.

    python scripts/benchmark_scaling.py                  # size M: C=16, 8 cells, batch 16 of the whole group; minutes
    python scripts/benchmark_scaling.py --size T --rounds 1

Both do the same steps of `moreau` on the embedded images. Rounds alternate; a round of a group gives the median of its
steps, the table the median of the rounds. Run it while nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {"T": (8, 5, 16), "M": (16, 8, 16)}  # channels, cells, images a batch


def worker(size: str, steps: int, output: Path) -> None:
    """Does steps in one process of a group; the first writes their seconds, and those spent in the exchange."""
    import torch

    from nas_moreau import distributed
    from nas_moreau.config import make_config
    from nas_moreau.stages.nonfinite import FiniteGuard
    from nas_moreau.stages.search import plan_search
    from nas_moreau.stages.setting import load_images

    torch.set_num_threads(1)
    channels, layers, batch = SIZES[size]
    search = {"channels": channels, "layers": layers, "batch_size": batch, "method": "moreau"}
    spent, average = [0.0], distributed.averaged

    def watched(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        begin = time.perf_counter()
        found = average(tensors)
        spent[0] += time.perf_counter() - begin
        return found

    distributed.averaged = watched
    with distributed.session():
        config = make_config({"device": "cpu", "search": search})
        job = plan_search(config, load_images(config))
        job.guard = FiniteGuard("search", job.device, None)
        for _ in range(2):
            job.advance()
        seconds = []
        spent[0] = 0.0
        for _ in range(steps):
            distributed.largest(0)  # all begin together, as the loop of a search lets them
            begin = time.perf_counter()
            job.advance()
            seconds.append(time.perf_counter() - begin)
        if distributed.rank() == 0:
            output.write_text(json.dumps({"seconds": seconds, "exchange": spent[0] / steps}), encoding="utf-8")


def measure(processes: int, size: str, steps: int) -> dict[str, float]:
    """Returns the median seconds of a step of a group, and the mean its first process spent in the exchange."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "seconds.json"
        words = [__file__, "--size", size, "--steps", str(steps), "--worker", str(output)]
        subprocess.run([*launch, *words], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=3600)
        found = json.loads(output.read_text(encoding="utf-8"))
    return {"step": statistics.median(found["seconds"]), "exchange": found["exchange"]}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="M")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="timed in each round, after two")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.size, args.steps, args.worker)
        return
    import torch

    from nas_moreau.runs.environment import processor_name

    load = os.getloadavg()[0]
    rounds = [{n: measure(n, args.size, args.steps) for n in (1, 2)} for _ in range(args.rounds)]
    command = shlex.join(["python", "scripts/benchmark_scaling.py", *sys.argv[1:]])
    print(f"`{command}`, torch {torch.__version__}, Python {platform.python_version()}, {processor_name()}, "
          f"{os.cpu_count()} cores, load {load:.1f} before it\n")  # fmt: skip
    print("| processes x threads | ms a step | of it exchange | steps a second | against one |\n|---|---|---|---|---|")
    one = statistics.median(found[1]["step"] for found in rounds)
    for n in (1, 2):
        step, exchange = (statistics.median(found[n][key] for found in rounds) for key in ("step", "exchange"))
        ratio = statistics.median(found[1]["step"] / found[n]["step"] for found in rounds)
        shares = f"| {1000 * exchange:.1f} ms " if n > 1 else "| "
        print(f"| {n} x 1 | {1000 * step:.0f} {shares}| {1 / step:.2f} | {ratio:.2f}x |")
    print(f"\nMedians of {args.rounds} rounds of {args.steps} steps; {1000 * one:.0f} ms is one process's step.")


if __name__ == "__main__":
    main()
