"""Measures what watching a search costs: the same search with and without TensorBoard, one after the other.

    python scripts/benchmark_watching.py [--preset smoke] [--rounds 5] [key=value ...]

Prints the median of the ratios of wall-clock times of neighbouring searches, and the share of the watched search that
is spent in writing to TensorBoard (curves, heat maps, drawings), which the machine's noise hardly touches. The first
search of all is not counted: it loads the libraries. Use settings whose epochs are as long as those you mean to run:
curves of single steps come every `logging.every_steps` steps, everything else once an epoch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas_moreau.config import Config, load_config
from nas_moreau.data import Data, load_images
from nas_moreau.runs.monitor import Monitor
from nas_moreau.search import epoch
from nas_moreau.search.stage import search

WATCHING = ("scalars", "image", "layout", "hparams", "flush")


class Clock:
    """Adds up the time that is spent inside functions, nested calls counted once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._depth += 1
            before = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - before

        return timed


def once(config: Config, data: Data, clock: Clock) -> tuple[float, float]:
    """Returns the seconds of a search and those of them that went into TensorBoard."""
    clock.seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        search(config, Path(folder) / "run", data=data)
        return time.perf_counter() - begin, clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    alone = ["derive.rule=space", *args.overrides]  # a last stage writes nothing to TensorBoard
    watched, bare = (
        load_config(args.preset, None, [*alone, f"logging.tensorboard={word}"]) for word in ("true", "false")
    )
    data, clock = load_images(watched), Clock()
    for name in WATCHING:
        setattr(Monitor, name, clock.around(getattr(Monitor, name)))
    epoch.draw_epoch = clock.around(epoch.draw_epoch)
    once(watched, data, clock)
    ratios, shares, lengths = [], [], []
    for turn in range(args.rounds):
        order = (watched, bare) if turn % 2 else (bare, watched)
        times = {config.logging.tensorboard: once(config, data, clock) for config in order}
        ratios.append(times[True][0] / times[False][0])
        shares.append(times[True][1] / times[True][0])
        lengths.append(times[False][0])
    steps = watched.search.epochs * (watched.search.steps_per_epoch or 0)
    size = f"{steps} steps, {watched.search.epochs} epochs, " if steps else f"{watched.search.epochs} epochs, "
    print(f"{args.preset} {' '.join(args.overrides)}: {size}{statistics.median(lengths):.1f} s unwatched")
    print(
        f"watched / unwatched: median {statistics.median(ratios):.3f} of n={args.rounds} "
        f"({min(ratios):.3f}..{max(ratios):.3f})"
    )
    print(
        f"share spent in TensorBoard: median {100 * statistics.median(shares):.2f} % "
        f"({100 * min(shares):.2f}..{100 * max(shares):.2f})"
    )


if __name__ == "__main__":
    main()
