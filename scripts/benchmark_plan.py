"""Compares what `nas-moreau plan` predicts with what search and retraining then take: CPU seconds, memory, wall clock.

    python scripts/benchmark_plan.py --data npz:cifar10.npz [--only smoke,nas_bench_201_cpu] [--rounds 3]

Every measurement has a separate process, one thread; a prediction and its truth follow each other, so that both meet
the machine in the same state. On a machine that others use, CPU seconds are what can be compared: a clock on the wall
counts the time when somebody else had the core, too. Where a stage is long (LONG below), its truth comes from two true
runs with fewer steps an epoch and the same epochs, evaluations and ends: the difference gives the time of a step, and
the steps that are left out are added. `--full` runs the long ones whole.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PRESETS = ("smoke", "nas_bench_201_cpu", "cpu")
LONG = {  # steps an epoch of the two runs
    ("cpu", "search"): (4, 12),
    ("cpu", "retrain"): (6, 18),
    ("nas_bench_201_cpu", "search"): (10, 25),
    ("nas_bench_201_cpu", "retrain"): (15, 45),
}
CELLS = {"cpu": "cifar10_cpu"}  # elsewhere the cell that the search of this round found


def predict(stage: str, config: Any, genotype: Any) -> dict[str, float]:
    """Returns the prediction of `plan`, reckoned in CPU seconds."""
    from nas_moreau.diagnostics import plan_probe
    from nas_moreau.diagnostics.plan import SECONDS

    plan_probe.now = lambda device: time.process_time()
    found = plan_probe.probe(stage, config, genotype, SECONDS)
    return {"cpu": 3600 * found["hours"], "memory": found["memory_bytes"]}


def carry_out(stage: str, config: Any, genotype: Any) -> dict[str, Any]:
    """Returns what the stage takes from its beginning, the images loaded, to its end."""
    from nas_moreau.data import load_images
    from nas_moreau.search.stage import search
    from nas_moreau.training.device import peak_memory_bytes, pick_device
    from nas_moreau.training.retrain import retrain

    data, device = load_images(config), pick_device(config.device)
    wall, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        if stage == "search":
            result = search(config, folder, data=data)
        else:
            result = retrain(config, genotype, folder, data=data)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    return {"cpu": cpu, "wall": wall, "memory": peak_memory_bytes(device), "genotype": result.to_dict().get("genotype")}


def child(request: dict[str, Any]) -> dict[str, Any]:
    """Answers one request: `predict` or `carry_out`."""
    from nas_moreau.architecture import Genotype, load_genotype
    from nas_moreau.config import load_config

    config = load_config(request["preset"], None, ["performance.threads=1", *request["overrides"]])
    cell = request["genotype"]
    genotype = None if cell is None else Genotype.from_json(cell) if isinstance(cell, dict) else load_genotype(cell)
    return (predict if request["predict"] else carry_out)(request["stage"], config, genotype)


def ask(**request: Any) -> dict[str, Any]:
    """Returns the answer of a separate process."""
    command = [sys.executable, __file__, "--child", json.dumps(request)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(f"{request} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def truth(preset: str, stage: str, overrides: list[str], genotype: Any, full: bool) -> dict[str, Any]:
    """Returns what the stage takes, the steps of a long one reckoned from two short runs."""
    if full or (preset, stage) not in LONG:
        return ask(preset=preset, stage=stage, overrides=overrides, genotype=genotype, predict=False)
    from nas_moreau.config import load_config

    settings = getattr(load_config(preset), stage)
    runs = [
        ask(
            preset=preset,
            stage=stage,
            overrides=[*overrides, f"{stage}.steps_per_epoch={steps}"],
            genotype=genotype,
            predict=False,
        )
        for steps in LONG[preset, stage]
    ]
    few, more = LONG[preset, stage]
    left = (settings.steps_per_epoch - more) / (more - few)
    found = {key: runs[1][key] + left * (runs[1][key] - runs[0][key]) for key in ("cpu", "wall")}
    return runs[1] | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10 for the presets that need it, as for `nas-moreau run`")
    parser.add_argument("--only", default=",".join(PRESETS), help="presets, with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="run the long ones whole")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print("\n" + json.dumps(child(json.loads(args.child))))
        return
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(args.rounds):
        for preset in args.only.split(","):
            overrides = [] if preset == "smoke" or args.data is None else [f"data.name={args.data}"]
            cell: Any = CELLS.get(preset)
            for stage in ("search", "retrain"):
                asked = {"preset": preset, "stage": stage, "overrides": overrides}
                given = None if stage == "search" else cell
                before = ask(**asked, genotype=given, predict=True)
                found = truth(preset, stage, overrides, given, args.full)
                cell = cell or found["genotype"]
                row = {
                    "predicted": before["cpu"],
                    "true": found["cpu"],
                    "off": before["cpu"] / found["cpu"] - 1,
                    "memory": before["memory"] / found["memory"] - 1,
                    "true_memory": found["memory"],
                    "wall": found["wall"],
                }
                if stage == "retrain" and turn == 0:  # before a search the cell is not known
                    row["unknown"] = ask(**asked, genotype=None, predict=True)["cpu"] / found["cpu"] - 1
                rows.setdefault((preset, stage), []).append(row)
                print(preset, stage, json.dumps({k: round(v, 3) for k, v in row.items()}), file=sys.stderr, flush=True)
    head = ("stage", "predicted CPU s", "true CPU s", "off", "memory off", "cell unknown: off", "n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for (preset, stage), found in rows.items():
        middle = {key: statistics.median(row[key] for row in found if key in row) for key in found[0]}
        spread = f"({100 * min(r['off'] for r in found):+.1f}..{100 * max(r['off'] for r in found):+.1f})"
        unknown = f"{100 * middle['unknown']:+.1f} %" if "unknown" in middle else ""
        print(
            f"| `{preset}` {stage} | {middle['predicted']:.1f} | {middle['true']:.1f} | {100 * middle['off']:+.1f} % "
            f"{spread} | {100 * middle['memory']:+.1f} % of {middle['true_memory'] / 2**20:.0f} MiB | {unknown} | "
            f"{len(found)} |"
        )


if __name__ == "__main__":
    main()
