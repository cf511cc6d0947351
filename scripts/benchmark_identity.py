"""What identity costs: the share of a search's time in which digests are computed, compared and recorded.

    python scripts/benchmark_identity.py --data npz:cifar10.npz [--repeat 3] [key=value ...]

Runs `search --preset nas_bench_201_cpu` in this process, each time in a new folder, and measures two things apart:
the comparison of what the run is made of (digests of images, space, genotype, configuration), and files.json (digests
of files and tables, written and waited for at every change). A run's time counts from the first byte of the images on.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IDENTITY = ("nas_moreau.runs.identity.refuse_other", "nas_moreau.runs.configuration.configuration_digest")
FILES = ("nas_moreau.runs.manifest.Manifest.write", "nas_moreau.runs.manifest.check_recorded")


class Clock:
    """Seconds spent in functions; what one of them calls of the others counts once."""

    def __init__(self) -> None:
        self.seconds, self._inside = 0.0, False

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, its time added to `seconds`."""

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self._inside:
                return function(*arguments, **keywords)
            self._inside, begin = True, time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds += time.perf_counter() - begin
                self._inside = False

        return call


def instrument(clock: Clock, names: tuple[str, ...]) -> None:
    """Replaces functions by timed ones, wherever they were imported."""
    for name in names:
        place, _, last = name.rpartition(".")
        owner = sys.modules.get(place) or getattr(sys.modules[place.rpartition(".")[0]], place.rpartition(".")[2])
        before = getattr(owner, last)
        after = clock.timed(before)
        for module in [owner, *(m for key, m in sys.modules.items() if key.startswith("nas_moreau."))]:
            if vars(module).get(last) is before:
                setattr(module, last, after)


def main() -> int:
    """Runs the searches and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the images")
    parser.add_argument("--repeat", type=int, default=3, help="number of searches")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    from nas_moreau import pipeline  # noqa: F401  (everything that a run imports)
    from nas_moreau.architecture import Genotype, SearchSpace
    from nas_moreau.config import load_config
    from nas_moreau.data import Data, load_images
    from nas_moreau.runs.environment import processor_name
    from nas_moreau.search.stage import search

    identity, files = Clock(), Clock()
    instrument(identity, IDENTITY)
    instrument(files, FILES)
    digest: Any = vars(Data)["digest"]
    digest.func = identity.timed(digest.func)
    for owner in (SearchSpace, Genotype):
        owner.digest = identity.timed(owner.digest)  # type: ignore[method-assign]
    config = load_config("nas_bench_201_cpu", overrides=[*args.overrides, f"data.name={args.data}"])
    print(f"{args.repeat} searches, {config.performance.threads} threads, {processor_name()}\n")
    print("| seconds | identity | share | files.json | share |\n|---|---|---|---|---|", flush=True)
    shares = []
    for seed in range(args.repeat):
        identity.seconds = files.seconds = 0.0
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            seeded = config.model_copy(update={"seed": seed})
            search(seeded, Path(folder) / "run", data=load_images(seeded))
            whole = time.perf_counter() - begin
        shares.append(100 * identity.seconds / whole)
        print(
            f"| {whole:.1f} | {identity.seconds:.3f} | {shares[-1]:.2f} % | {files.seconds:.3f} | "
            f"{100 * files.seconds / whole:.2f} % |",
            flush=True,
        )
    print(f"\nidentity: {statistics.mean(shares):.2f} % of a search's time, at most {max(shares):.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
