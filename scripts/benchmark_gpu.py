"""Finds the fastest correct `performance` settings on this machine's GPU and writes them as a configuration.

    python scripts/benchmark_gpu.py                                  # preset cifar10 -> gpu.yaml; minutes to an hour
    python scripts/benchmark_gpu.py --no-compile --rounds 5          # without the minutes of compiling
    python scripts/benchmark_gpu.py --preset smoke --device cpu --rounds 1 --no-compile    # a trial without a GPU

Needs no data set. What it checks, measures and chooses: docs/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import yaml

from nas_moreau.config import load_config
from nas_moreau.diagnostics.tune_performance import as_configuration, benchmark_settings
from nas_moreau.errors import InputError
from nas_moreau.presets import preset_text
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.training.device import pick_device


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10", help="whose sizes are measured, and what is written out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=10, help="n of the medians")
    parser.add_argument("--check-batch", type=int, default=8, help="images of the step that is checked on the CPU")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--no-compile", action="store_true", help="leave out compiled variants")
    parser.add_argument("--output", default="gpu.yaml", help="configuration to write; replaced if it exists")
    parser.add_argument("--json", metavar="FILE", help="write the whole result, too")
    given = parser.parse_args(arguments)
    try:
        config, device = load_config(given.preset), pick_device(given.device)
    except InputError as error:
        print(f"{error.cause} {error.cure}", file=sys.stderr)
        return 2
    result = benchmark_settings(
        config,
        device,
        given.rounds,
        given.check_batch,
        given.image_size,
        not given.no_compile,
        note=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if given.json:
        write_atomic(Path(given.json), (json.dumps(result.to_dict(), indent=1) + "\n").encode())
    print(f"{result.hardware}, torch {result.torch}, preset {given.preset}, n={given.rounds}")
    print(f"{'stage':8} {'settings':36} {'ms a step':>10} {'peak MB':>8} {'loss':>8} {'vectors':>8}  relative errors")
    for row in result.rows:
        found = row.errors or {}
        worst = (
            [f"{found['loss']:.0e}", f"{max(v for k, v in found.items() if k != 'loss'):.0e}"] if found else ["", ""]
        )
        time = "" if row.milliseconds is None else f"{row.milliseconds:.1f}"
        memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
        verdict = row.fault or ("" if row.passed else "not right")
        print(f"{row.stage:8} {row.name:36} {time:>10} {memory:>8} {worst[0]:>8} {worst[1]:>8}  {verdict}")
    if result.chosen is None:
        print("No settings were right and could be timed in both stages; nothing is written.")
        return 1
    preset = yaml.safe_load(preset_text(given.preset))
    name = preset.get("data", {}).get("name", config.data.name)
    fetched = "" if name == "shapes" else " --download"
    command = f"nas-moreau run --config {shlex.quote(given.output)} --data {name}{fetched}"
    said = shlex.join(["python", "scripts/benchmark_gpu.py", *(sys.argv[1:] if arguments is None else arguments)])
    write_atomic(Path(given.output), as_configuration(preset, result, command, said).encode())
    print(f"\n{given.output} has the fastest; both stages then take about {result.hours:.1f} hours on CIFAR-10:\n")
    print(f"    {command}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
