"""How long the command line takes to answer: python scripts/benchmark_startup.py [--n N]

Each command runs N times in a separate process, with everything read once before. The medians should be below 0.3 s
for help and 0.5 s for a list. The processor's time, which other work on the machine hardly touches, stands beside them.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

from nas_moreau.runs.environment import processor_name

COMMANDS = {"--help": 0.3, "list spaces": 0.5}


def seconds(words: str) -> tuple[float, float]:
    """Returns the wall-clock and the processor's seconds of one process of the command line."""
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-m", "nas_moreau", *words.split()], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, used


def main() -> None:
    """Prints the median, the least and the largest time of every command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=20, help="processes of each command (default 20)")
    n = parser.parse_args().n
    print(f"{processor_name()}, {os.cpu_count()} processors, Python {platform.python_version()}, n = {n}")
    for words, aim in COMMANDS.items():
        seconds(words)
        taken, used = zip(*(seconds(words) for _ in range(n)))
        wall = f"{statistics.median(taken):.3f} s ({min(taken):.3f} to {max(taken):.3f}), aim {aim} s"
        print(f"nas-moreau {words}: {wall}; processor {statistics.median(used):.3f} s")


if __name__ == "__main__":
    main()
