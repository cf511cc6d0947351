"""What a run survives: killed, stopped, damaged, filled up, poisoned, given swapped inputs; outcomes are counted.

    python scripts/benchmark_faults.py                      # the full counts: some minutes of one core
    python scripts/benchmark_faults.py --quick              # a few of each: a minute
    python scripts/benchmark_faults.py --only kill,bits     # some of them

Needs Linux (processes are forked). Runs are of the toy space on 60 random images of 8x8. Prints a table in Markdown;
the exit code is 1 when anything ended otherwise than it should.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from faults import damage, deaths, mutations, operations, poison, ranks, swaps
from faults.toy import Row, import_everything

from nas_moreau.runs.environment import processor_name

# name -> full count, quick count, what is done
EXPERIMENTS: dict[str, tuple[int, int, Callable[[int, Path], list[Row]]]] = {
    "kill": (100, 1, lambda n, folder: [deaths.kill(stage, n, folder) for stage in ("search", "retrain")]),
    "operations": (320, 3, lambda n, folder: operations.kills(n, folder)),
    "clocks": (24, 2, lambda n, folder: [operations.clocks(n, folder)]),
    "inputs": (1000, 3, lambda n, folder: swaps.swaps(n, folder)),
    "ranks": (10, 1, lambda n, folder: [ranks.kill_one(stage, n, folder) for stage in ("search", "retrain")]),
    "save": (10, 1, lambda n, folder: [deaths.save_points(folder, n)]),
    "signals": (50, 1, lambda n, folder: [deaths.signals(n, folder)]),
    "bits": (1000, 50, lambda n, folder: [damage.bits(n, folder), damage.truncations(n // 5, folder)]),
    "full": (64, 8, lambda n, folder: [damage.full_disk(n, folder)]),
    "nan": (1, 1, lambda n, folder: poison.everywhere(folder)),
    "mutations": (10_000, 20, lambda n, folder: mutations.every_kind(n, folder)),
}


def main() -> int:
    """Runs the experiments that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(EXPERIMENTS), help=f"some of {','.join(EXPERIMENTS)}")
    parser.add_argument("--quick", action="store_true", help="a few of each")
    parser.add_argument("--folder", help="where the runs are made (default: memory, /dev/shm, where there is one)")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := set(names) - set(EXPERIMENTS):
        parser.error(f"there is no experiment {', '.join(sorted(unknown))}")
    import_everything()
    import torch

    place = args.folder or ("/dev/shm" if Path("/dev/shm").is_dir() else None)
    command = shlex.join(["python", "scripts/benchmark_faults.py", *sys.argv[1:]])
    print(f"`{command}`, torch {torch.__version__}, Python {platform.python_version()}, {processor_name()}\n")
    print("| what | n | as it should be | notes | seconds |\n|---|---|---|---|---|", flush=True)
    rows = []
    for name in names:
        full, quick, experiment = EXPERIMENTS[name]
        with tempfile.TemporaryDirectory(prefix="faults-", dir=place) as folder:
            for row in experiment(quick if args.quick else full, Path(folder)):
                print(f"| {row.name} | {row.count:,} | {row.well:,} | {row.note} | {row.seconds:.0f} |", flush=True)
                rows.append(row)
    return int(any(row.well != row.count for row in rows))


if __name__ == "__main__":
    sys.exit(main())
