"""Verbs that use a trained network: export, predict."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nas_moreau.cli.options import CONFIGURATION, configuration, stage_folder
from nas_moreau.cli.output import note, print_rows, print_table
from nas_moreau.cli.verbs import option, verb
from nas_moreau.errors import InputError
from nas_moreau.export import FORMATS
from nas_moreau.report.format import percent
from nas_moreau.runs.heartbeat import heartbeat

SHOWN = 3  # classes in a row of `predict`


def _classifier(source: str) -> Any:
    """Returns the trained network of a run or an exported folder."""
    from nas_moreau.export import classifier

    if classifier.is_export(source):
        return classifier.from_export(source)
    from nas_moreau.runs.configuration import run_config

    folder = stage_folder(source, "retrain")
    return classifier.from_run(folder, run_config(folder))


@verb(
    "export",
    "write a trained network as files that other programs load",
    examples=[
        "export checkpoints/first --format onnx",
        "export checkpoints/first --format python --output my_model",
        "export DARTS_V2 --format onnx --untrained retrain.channels=16",
    ],
    options=[
        option("run", metavar="RUN", help="a retraining, or the parent made by `run`; with --untrained a genotype"),
        option("--format", choices=FORMATS, required=True),
        option("--output", metavar="DIR", help="missing or empty folder (default: export-FORMAT in the run)"),
        option("--untrained", action="store_true", help="random weights: to try a genotype's network elsewhere"),
        *CONFIGURATION,
    ],
)
def export(args: argparse.Namespace) -> dict[str, Any]:
    """Writes a network as files and prints their names."""
    with heartbeat("export: loading torch"):
        from nas_moreau.export import classifier
        from nas_moreau.export.formats import export as write

    if args.untrained:
        with heartbeat(f"building {args.run}"):
            network, output = _untrained(args)
    else:
        if (args.overrides or args.preset or args.config or args.data) or not Path(args.run).exists():
            raise _refusal(args)
        with heartbeat(f"loading {args.run}"):
            network = _classifier(args.run)
        folder = Path(args.run) if classifier.is_export(args.run) else stage_folder(args.run, "retrain")
        output = folder / f"export-{args.format}"
    with heartbeat(f"writing and checking {args.format}"):
        result = write(network, args.format, args.output or output)
    if not args.json:
        largest = max(check["largest_difference"] for check in result["checks"])
        rows = [
            ("written", result["output"]),
            ("files", ", ".join(result["files"])),
            ("checked", f"outputs differ from the network's by at most {largest:.1e}, batches of 1 and 3"),
            ("in timm", f"timm.create_model('local-dir:{result['output']}', pretrained=True)"),
        ]
        print_rows(rows)
    return result


def _untrained(args: argparse.Namespace) -> tuple[Any, Path]:
    """Returns the network of a genotype with random weights, and the default folder of its files."""
    from nas_moreau.architecture import load_genotype
    from nas_moreau.export import classifier

    genotype = load_genotype(args.run)
    sizes: list[str] = []
    if not args.preset and not args.config:
        channels, layers = genotype.skeleton.published_sizes
        sizes = [f"retrain.channels={channels}", f"retrain.layers={layers}"]
    network = classifier.untrained(genotype, configuration(args, defaults=sizes))
    return network, Path(f"export-{genotype.digest()}-{args.format}")


def _refusal(args: argparse.Namespace) -> InputError:
    """Returns the error for a trained network that is given a configuration, or a genotype without weights."""
    from nas_moreau.architecture import load_genotype

    if Path(args.run).exists():
        return InputError("A trained network is exported unchanged.", "Leave the configuration out or use --untrained.")
    genotype = load_genotype(args.run)
    return InputError(
        f"{args.run[:60]} is the genotype {genotype.digest()}: it has no weights.",
        "Retrain it first and export the run, or use --untrained for random weights.",
    )


@verb(
    "predict",
    "classify images with a trained network",
    examples=["predict checkpoints/first photo.png other.jpg", "predict my_model photos/ --json"],
    options=[
        option("run", metavar="RUN-OR-EXPORT", help="a retraining, the parent made by `run`, or an export"),
        option("images", nargs="+", metavar="IMAGE", help="image files, or folders of them"),
    ],
)
def predict(args: argparse.Namespace) -> dict[str, Any]:
    """Classifies images and prints the most probable classes."""
    with heartbeat(f"classifying with {args.run}"):
        from nas_moreau.export.predict import predict as classify

        result = classify(_classifier(args.run), args.images)
    if not args.json:
        rows = []
        for row in result["images"]:
            ranked = sorted(row["probabilities"].items(), key=lambda item: -item[1])[1:SHOWN]
            others = ", ".join(f"{name} {percent(value, 1)}" for name, value in ranked)
            rows.append((row["file"], row["class"], percent(row["probability"], 1), others))
        print_table(("image", "class", "probability", "next"), rows, left=("class", "next"))
    for row in result["unreadable"]:
        note(f"not read: {row['file']}: {row['reason']}")
    return result
