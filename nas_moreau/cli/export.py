"""What the verbs do that use what was found or look ahead: export, predict, plan, doctor."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nas_moreau.cli.options import configuration, print_rows, run_config, say, stage_folder
from nas_moreau.errors import InputError

SHOWN = 3  # classes in a row of `predict`


def _classifier(source: str) -> Any:
    """Returns the trained network of a run or an exported folder."""
    from nas_moreau.export import classifier

    if classifier.is_export(source):
        return classifier.from_export(source)
    folder = stage_folder(source, "retrain")
    return classifier.from_run(folder, run_config(folder))


def export(args: argparse.Namespace) -> dict[str, Any]:
    """Writes a network as files and prints which."""
    from nas_moreau.export import classifier
    from nas_moreau.export.formats import export as write

    if args.untrained:
        from nas_moreau.architecture import load_genotype, published_sizes

        genotype = load_genotype(args.run)
        if not args.preset and not args.config:
            channels, layers = published_sizes(genotype)
            sizes = [f"retrain.channels={channels}", f"retrain.layers={layers}"]
            args.overrides = [*sizes, *args.overrides]
        network = classifier.untrained(genotype, configuration(args))
        output = args.output or f"export-{genotype.digest()}-{args.format}"
    else:
        if (args.overrides or args.preset or args.config or args.data) or not Path(args.run).exists():
            _refuse(args)
        network = _classifier(args.run)
        folder = Path(args.run) if classifier.is_export(args.run) else stage_folder(args.run, "retrain")
        output = args.output or folder / f"export-{args.format}"
    result = write(network, args.format, output)
    if not args.json:
        largest = max(check["largest_difference"] for check in result["checks"])
        print_rows([
            ("written", result["output"]),
            ("files", ", ".join(result["files"])),
            ("checked", f"outputs at most {largest:.1e} from the network's, batches of 1 and 3"),
            ("in timm", f"timm.create_model('local-dir:{result['output']}', pretrained=True)"),
        ])  # fmt: skip
    return result


def _refuse(args: argparse.Namespace) -> None:
    from nas_moreau.architecture import load_genotype

    if Path(args.run).exists():
        raise InputError("A trained network is exported as it is.", "Leave the configuration out, or use --untrained.")
    genotype = load_genotype(args.run)
    raise InputError(
        f"{args.run[:60]} is the genotype {genotype.digest()}: it has no weights.",
        "Retrain it first and export the run, or use --untrained for random weights.",
    )


def predict(args: argparse.Namespace) -> dict[str, Any]:
    """Classifies images and prints the likeliest classes."""
    from nas_moreau.export.predict import predict as classify

    result = classify(_classifier(args.run), args.images)
    if not args.json:
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for column in ("image", "class", "probability", "next"):
            table.add_column(column, overflow="fold")
        for row in result["images"]:
            ranked = sorted(row["probabilities"].items(), key=lambda item: -item[1])[1:SHOWN]
            others = ", ".join(f"{name} {100 * value:.1f} %" for name, value in ranked)
            table.add_row(row["file"], row["class"], f"{100 * row['probability']:.1f} %", others)
        Console().print(table)
    for row in result["unreadable"]:
        say(f"not read: {row['file']}: {row['reason']}")
    return result


def plan(args: argparse.Namespace) -> dict[str, Any]:
    """Measures a few steps and prints what a run will take."""
    from nas_moreau.architecture import load_genotype
    from nas_moreau.diagnostics.plan import parse_memory
    from nas_moreau.diagnostics.plan import plan as look_ahead

    memory = None if args.memory is None else parse_memory(args.memory)
    if args.hours is not None and not args.hours > 0:
        raise InputError(f"--hours is {args.hours:g}.", "Give the hours that there are.")
    genotype = None if args.genotype is None else load_genotype(args.genotype)
    result = look_ahead(configuration(args), genotype, memory, args.hours, args.imports, say)
    if not args.json:
        rows = [(stage, "", result[stage]) for stage in ("search", "retrain")]
        rows += [
            (p["stage"], f"{' '.join(p['change'])}{'' if p['fits'] else '  (too much)'}", p)
            for p in result["proposals"]
        ]
        shown = [("stage", "memory", "time", "with"), *((s, _memory(r), _time(r), text) for s, text, r in rows)]
        print_rows(shown)
        if genotype is None:
            say("The retraining is that of a random cell of the space; --genotype names the one you mean.")
    return result


def _memory(row: dict[str, Any]) -> str:
    return "more than there is" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e9:.2f} GB"


def _time(row: dict[str, Any]) -> str:
    hours = row["hours"]
    if hours is None:
        return "?"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


def doctor(args: argparse.Namespace) -> dict[str, Any]:
    """Checks this machine and prints what is amiss."""
    from nas_moreau.diagnostics.doctor import examine

    result = examine(Path(args.output), Path(args.data_dir))
    if not args.json:
        print_rows([(row["state"], row["what"], row["found"]) for row in result["findings"]])
        cures = [f"{row['what']}: {row['cure']}" for row in result["findings"] if row["cure"]]
        print("\n".join(["", "what to do:", *(f"  {cure}" for cure in cures)] if cures else []))
        print("usable" if result["usable"] else "not usable as it is")
    return result
