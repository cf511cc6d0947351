"""Search steps a second of one process with one thread, and of two under torchrun with one thread each.

    python scripts/benchmark_scaling.py                  # size M: C=16, 8 cells, batch 16 of the whole group; minutes
    python scripts/benchmark_scaling.py --size T --rounds 1

Both do the same steps of `moreau` on the embedded images. Rounds alternate; a round of a group gives the median of its
steps, the table the median of the rounds. Run it while nothing else runs: of a busy machine a group of two gets a
larger share than one process. The processor time of a step (of a group that of its slower process; waits cost none)
says what an idle machine needs at least.
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
    """Does steps in one process of a group, which writes the median seconds of a step; see `measure`."""
    import torch

    from nas_moreau import distributed
    from nas_moreau.config import make_config
    from nas_moreau.data import load_images
    from nas_moreau.search.stage import plan_search

    torch.set_num_threads(1)
    channels, layers, batch = SIZES[size]
    search = {"channels": channels, "layers": layers, "batch_size": batch, "method": "moreau"}
    spent, average = [0.0], distributed.all_reduce_mean

    def watched(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        begin = time.perf_counter()
        found = average(tensors)
        spent[0] += time.perf_counter() - begin
        return found

    distributed.all_reduce_mean = watched
    with distributed.session():
        config = make_config({"device": "cpu", "search": search})
        job = plan_search(config, load_images(config))
        for _ in range(2):
            job.train_step()
        seconds, busy = [], []
        spent[0] = 0.0
        for _ in range(steps):
            distributed.all_reduce_max(0)  # all begin together, as the loop of a search lets them
            begin, worked = time.perf_counter(), time.process_time()
            job.train_step()
            seconds.append(time.perf_counter() - begin)
            busy.append(time.process_time() - worked)
        mine = {"step": statistics.median(seconds), "exchange": spent[0] / steps, "busy": statistics.median(busy)}
        found = distributed.all_gather_object(mine)
        if distributed.rank() == 0:
            output.write_text(json.dumps({key: max(one[key] for one in found) for key in mine}), encoding="utf-8")


def measure(processes: int, size: str, steps: int) -> dict[str, float]:
    """Returns the slower process's median seconds of a step, of processor time in it, and mean seconds of exchange."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "seconds.json"
        words = [__file__, "--size", size, "--steps", str(steps), "--worker", str(output)]
        subprocess.run([*launch, *words], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=3600)
        return json.loads(output.read_text(encoding="utf-8"))


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
    print(
        f"`{command}`, torch {torch.__version__}, Python {platform.python_version()}, {processor_name()}, "
        f"{os.cpu_count()} cores, load {load:.1f} before it\n"
    )
    print("| processes x threads | ms a step | in exchange | against one | processor time, ms | against one |")
    print("|---|---|---|---|---|---|")

    def middle(n: int, key: str) -> float:
        return 1000 * statistics.median(found[n][key] for found in rounds)

    for n in (1, 2):
        ratios = {key: statistics.median(found[1][key] / found[n][key] for found in rounds) for key in ("step", "busy")}
        print(
            f"| {n} x 1 | {middle(n, 'step'):.0f} | {middle(n, 'exchange'):.1f} | {ratios['step']:.2f}x "
            f"| {middle(n, 'busy'):.0f} | {ratios['busy']:.2f}x |"
        )
    print(f"\nMedians of {args.rounds} rounds of {args.steps} steps.")


if __name__ == "__main__":
    main()
