"""Single bits of every text file of finished runs are flipped: noticed by the reader, or read as the same values."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.finished import Finished
from faults.toy import Row

SUFFIXES = (".json", ".yaml", ".csv")
PLACES = ("search", "retrain", "run", "run/search", "run/retrain", "compare", "solve", "out")
MOST = 100
PARTS = ("config", "environment", "status", "result", "evaluation", "data", "metrics", "genotype", "alphas")


def _stage(folder: Path) -> Any:
    """Returns everything that readers get to know of a run folder."""
    from nas_moreau.runs.history import Stage
    from nas_moreau.runs.identity import recorded_identity
    from nas_moreau.runs.tables import read_table

    stage = Stage(folder)
    found = {name: repr(getattr(stage, name)) for name in PARTS}
    tables = [read_table(path) for path in sorted(folder.glob("*.csv"))]
    return found, tables, recorded_identity(folder)


def _export(folder: Path) -> Any:
    from nas_moreau.export.classifier import from_export

    found = from_export(folder)
    return repr((found.genotype, found.channels, found.layers, found.data, found.record))


def flips(made: Finished, count: int, seed: int = 7) -> Row:
    """Flips bits of each text file, at most 100, and every reader reads it."""
    from nas_moreau.errors import InputError

    begin, draw = time.monotonic(), random.Random(seed)
    outcome, wrong, files = Counter[str](), Counter[str](), 0
    for place in PLACES:
        at = made.path / place
        read: Callable[[Path], Any] = _export if place == "out" else _stage
        sound = read(at)
        for path in sorted(path for path in at.iterdir() if path.suffix in SUFFIXES):
            data, files = path.read_bytes(), files + 1
            for bit in (draw.randrange(8 * len(data)) for _ in range(min(count, MOST))):
                changed = bytearray(data)
                changed[bit // 8] ^= 1 << bit % 8
                path.write_bytes(bytes(changed))
                try:
                    same = read(at) == sound
                    result = "harmless" if same else "silent"
                except InputError as error:
                    result = "noticed" if "\n" not in str(error) else "no sentence"
                except Exception as error:
                    result = type(error).__name__
                outcome[result] += 1
                wrong.update([f"{place}/{path.name}, bit {bit}: {result}"] * (result not in ("noticed", "harmless")))
            path.write_bytes(data)
    total = sum(outcome.values())
    note = (
        f"{files} files; {outcome['noticed']:,} noticed, {outcome['harmless']:,} harmless, {outcome['silent']} silent"
    )
    note += f" {list(wrong)[:3]}" if wrong else ""
    return Row("single-bit flips of text files", total, total - sum(wrong.values()), note, time.monotonic() - begin)
