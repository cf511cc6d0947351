"""Verbs of a run's stages: run, search, derive, retrain, evaluate."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_moreau import distributed
from nas_moreau.cli import options
from nas_moreau.cli.modules import MODULE, refuse_without_module, search_inside
from nas_moreau.cli.options import CONFIGURATION, RUN_FOLDER, begin, stage_folder, working_in
from nas_moreau.cli.output import note, print_json, print_next, print_rows
from nas_moreau.cli.verbs import option, verb
from nas_moreau.errors import InputError
from nas_moreau.report.format import percent
from nas_moreau.runs.heartbeat import heartbeat

if TYPE_CHECKING:
    from nas_moreau.architecture import Genotype
    from nas_moreau.config import Config


@verb(
    "run",
    "the main job: search, derive, retrain, evaluate, report",
    examples=[
        "run --preset smoke",
        "run --preset cpu --data npz:cifar10.npz --output checkpoints/first",
        "run --preset cifar10 --data cifar10 --download",
        "run --preset smoke --against-random 3",
        "run --output checkpoints/first --resume",
    ],
    options=[
        *CONFIGURATION,
        *RUN_FOLDER,
        option(
            "--against-random",
            type=int,
            metavar="N",
            help="also train N random cells by the same recipe: is the found one better than chance?",
        ),
    ],
    distributed=True,
)
def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Runs the main job and prints its outcome."""
    config, output = begin(args, "run")
    if args.dry_run:
        with heartbeat("reading the images"):
            described = _described(config, output)
        print_json(described)
        return None
    with working_in(output):
        from nas_moreau import pipeline

        result = pipeline.run(config, output, args.resume)
        held_out = _held_out(output / "search", config)
    found, trained = result.search, result.retrain
    if not args.json:
        from nas_moreau.report.verdict import against_random
        from nas_moreau.runs.history import read_run

        chance = against_random(read_run(output))
        rows = [
            ("cell", f"{found.digest}  ({found.method}, {found.steps} steps, {found.wall_seconds:.0f} s)"),
            ("verdict", found.verdict or "drawn at random"),
            *_percentile(found.genotype),
            ("supernet, held-out accuracy", _of_images(found.held_out_accuracy, held_out)),
            (
                "retrained, test accuracy",
                f"{_of_images(trained.test_accuracy, _tests(output / 'retrain'))}, {trained.wall_seconds:.0f} s",
            ),
            ("network", f"{trained.parameters:,} parameters, {trained.macs:,} multiply-adds"),
            *([] if chance is None else [("against chance", chance)]),
            ("report", result.report),
        ]
        print_rows(rows)
        _print_next(output)
    return result.to_dict()


@verb(
    "search",
    "search for cells, or for choices inside your own module",
    examples=[
        "search --preset smoke",
        "search --preset cpu search.method=random seed=3",
        "search --import mine.py --module make_model --steps 1000",
    ],
    options=[*CONFIGURATION, *RUN_FOLDER, *MODULE],
    distributed=True,
)
def search(args: argparse.Namespace) -> dict[str, Any] | None:
    """Searches and prints the cell and the next command; with --module see `cli.modules`."""
    refuse_without_module(args)
    if args.module:
        return search_inside(args)
    config, output = begin(args, "search")
    if args.dry_run:
        with heartbeat("reading the images"):
            described = _described(config, output)
        print_json(described)
        return None
    with working_in(output):
        from nas_moreau.search import stage

        result = stage.search(config, output, args.resume)
        held_out = _held_out(output, config)
    if not args.json:
        before = result.derived.before
        rows = [
            *([] if before is None else [("cell by the space's rule", before.digest()), *_percentile(before)]),
            ("cell", result.digest),
            ("verdict", result.verdict or "drawn at random"),
            *_percentile(result.genotype),
            ("supernet, held-out accuracy", _of_images(result.held_out_accuracy, held_out)),
            ("genotype", str(output / "genotype.json")),
        ]
        print_rows(rows)
        _print_next(output)
    return result.to_dict()


@verb(
    "derive",
    "derive the genotype from a search's alphas again, by any rule",
    examples=[
        "derive checkpoints/first",
        "derive checkpoints/first --rule selection --write",
        "derive checkpoints/first --rule trained derive.trained.steps=400",
        "derive checkpoints/first --max-parameters 3000000",
        "derive checkpoints/seed0 checkpoints/seed1",
    ],
    options=[
        option(
            "runs",
            nargs="+",
            metavar="RUN",
            help="a search folder, or the parent made by `run`; the softmax weights of several runs are averaged",
        ),
        option("overrides", nargs="*", metavar="derive.key=value", help="single keys of the section derive"),
        option("--rule", help="a name of `list rules` (default: the run's)"),
        option("--max-parameters", type=int, metavar="N", help="limit for the retraining network"),
        option("--max-macs", type=int, metavar="N", help="limit for its multiply-adds on one image"),
        option("--write", action="store_true", help="write the cell into the folder of the finished search"),
        options.DATA,
        options.DATA_DIR,
        options.DEVICE,
    ],
)
def derive(args: argparse.Namespace) -> dict[str, Any]:
    """Derives a cell from the alphas of searches and prints it."""
    with heartbeat("derive: loading torch"):
        from nas_moreau.runs.configuration import run_config
        from nas_moreau.search.derive import derive_ensemble, derive_run, write_derived

    runs = [word for word in args.runs if not _is_setting(word)]
    if not runs:
        raise InputError("No search was given.", "Give its folder before the settings.")
    folders = [stage_folder(run, "search") for run in runs]
    config = _derivation(args, run_config(folders[0]))
    if args.write and len(folders) > 1:
        raise InputError("The cell of several searches belongs to no single run folder.", "Leave --write out.")
    with heartbeat(f"deriving from {', '.join(runs)} by the rule {config.derive.rule}"):
        found = derive_run(folders[0], config, report=note) if len(folders) == 1 else derive_ensemble(folders, config)
    result = found.to_dict()
    if found.before is not None:
        note(f"before (the space's rule): {found.before.digest()}")
        note(f"after ({found.derived_by['rule']}): {result['digest']}")
    for line in _tried(found.derived_by):
        note(line)
    for moment, genotype in (("before", found.before), ("after" if found.before else "", found.genotype)):
        for title, text in _percentile(genotype) if genotype is not None else ():
            note(f"{title} {moment}".rstrip() + f": {text}")
    if args.write:
        write_derived(folders[0], found)
        note(f"written to {folders[0] / 'genotype.json'}")
    if not args.json:
        print(found.genotype.to_json())
    return result


def _is_setting(word: str) -> bool:
    """Whether a word is key=value and not the name of a folder."""
    return "=" in word and not os.path.exists(word)


def _derivation(args: argparse.Namespace, config: Config) -> Config:
    """Returns a run's configuration with the settings, the place of the data and the device that were given."""
    from nas_moreau.config import make_config

    settings = [word for word in args.runs if _is_setting(word)] + args.overrides
    if wrong := [word for word in settings if not word.startswith("derive.")]:
        raise InputError(f"'{wrong[0]}' cannot be changed after the search.", "Give keys of the section derive.")

    given = {
        "derive.rule": args.rule,
        "derive.max_parameters": args.max_parameters,
        "derive.max_macs": args.max_macs,
        "data.name": args.data,
        "data.directory": args.data_dir,
        "device": args.device,
    }
    plain = config.to_dict()
    for key, value in given.items():
        section, _, name = key.rpartition(".")
        if value is not None:
            (plain[section] if section else plain)[name] = value
    return make_config(plain, overrides=settings)


def _tried(record: dict[str, Any]) -> list[str]:
    """Returns one line for each part of a rule's record."""
    lines = []
    if "budget" in record:
        budget = record["budget"]
        how = "exactly" if budget["exact"] else "by beam search"
        lines.append(f"{budget['parameters']:,} parameters, {budget['macs']:,} multiply-adds; chosen {how}")
    if "candidates" in record:
        first, chosen = record["candidates"][0], record["chosen"]
        change = chosen["change"]
        where = f"{change['cell']} {change['edge'][0]}-{change['edge'][1]}" if change else ""
        what = f"{where}: {change['from']} -> {change['to']}, loss" if change else "nothing changed, loss"
        losses = ["not finite" if row["loss"] is None else f"{row['loss']:.4f}" for row in (first, chosen)]
        lines.append(f"{what} {losses[0]} -> {losses[1]}, {len(record['candidates'])} cells measured")
    for row in record.get("rounds", []):
        ends = (row["candidates"][k]["loss"] for k in (0, -1))
        span = " to ".join("not finite" if loss is None else f"{loss:.4f}" for loss in ends)
        lines.append(f"{len(row['candidates'])} cells after {row['steps']} steps: loss {span}")
    return lines + ([record["note"]] if "note" in record else [])


@verb(
    "retrain",
    "train the network of a genotype from its initial weights",
    examples=[
        "retrain DARTS_V2 --preset cifar10 --data cifar10",
        "retrain checkpoints/first",
        "retrain cell.json --preset cpu",
    ],
    options=[
        option(
            "genotype",
            metavar="GENOTYPE-OR-RUN",
            help="JSON file or text, printed genotype, name of a cell (list cells), or run",
        ),
        *CONFIGURATION,
        *RUN_FOLDER,
    ],
    distributed=True,
)
def retrain(args: argparse.Namespace) -> dict[str, Any] | None:
    """Retrains a cell and prints its accuracy."""
    from nas_moreau.architecture.spaces.zoo import load_genotype
    from nas_moreau.runs.history import Stage

    def load() -> tuple[Path | None, Any]:
        if os.path.exists(os.path.join(args.genotype, "status.json")):  # Path() refuses the text of some genotypes
            base = stage_folder(args.genotype, "search", "retrain")
            return base, Stage(base).genotype or load_genotype(str(base / "genotype.json"))
        return None, load_genotype(args.genotype)

    base, genotype = distributed.run_on_rank0(load)
    config, output = begin(args, "retrain", base)
    if args.dry_run:
        with heartbeat("reading the images"):
            described = _described(config, output)
        print_json(described)
        return None
    with working_in(output):
        from nas_moreau.training import retrain as stage

        result = stage.retrain(config, genotype, output, args.resume)
    if not args.json:
        rows = [
            ("cell", result.digest),
            ("test accuracy", _of_images(result.test_accuracy, _tests(output))),
            ("network", f"{result.parameters:,} parameters, {result.macs:,} multiply-adds"),
        ]
        print_rows(rows)
        _print_next(output)
    return result.to_dict()


@verb(
    "evaluate",
    "measure the network of a run",
    examples=["evaluate checkpoints/first --json"],
    options=[
        option("run", metavar="RUN", help="a retraining or search folder, or the parent made by `run`"),
        options.DATA,
        options.DATA_DIR,
        options.DEVICE,
    ],
)
def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Measures a run's network and prints the numbers."""
    with heartbeat(f"evaluating {args.run}"):
        from nas_moreau.pipeline import evaluate_run
        from nas_moreau.runs.configuration import run_config

        folder = stage_folder(args.run, "retrain", "search")
        config = run_config(folder)
        changes: dict[str, Any] = {"device": args.device or config.device}
        changes["data"] = config.data.model_copy(
            update={k: v for k, v in (("name", args.data), ("directory", args.data_dir)) if v is not None}
        )
        result = evaluate_run(folder, config.model_copy(update=changes)).to_dict()
    if not args.json:
        loss = "not finite" if result["loss"] is None else f"{result['loss']:.4g}"
        shown = {"accuracy": percent(result["accuracy"]), "loss": loss}
        print_rows([(name, shown.get(name, str(value))) for name, value in result.items()])
    return result


def _print_next(folder: Path) -> None:
    """Prints what to do next with the run in a folder."""
    from nas_moreau.report.verdict import next_step
    from nas_moreau.runs.history import read_run

    print_next(*next_step(read_run(folder)))


def _percentile(genotype: Genotype) -> list[tuple[str, str]]:
    """Returns the row of a cell's predicted percentile; [] for cells that have none."""
    from nas_moreau.architecture.spaces.percentile import percentile_text

    text = percentile_text(genotype)
    return [] if text is None else [("percentile", text)]


def _of_images(accuracy: float | None, count: int) -> str:
    """Returns an accuracy with the number of images that it was measured on."""
    return percent(accuracy) if accuracy is None or not count else f"{percent(accuracy)} of {count:,} images"


def _tests(folder: Path) -> int:
    """Returns the number of test images of a run folder."""
    from nas_moreau.runs.history import Stage

    return sum(Stage(folder).data.get("test", ()))


def _held_out(folder: Path, config: Config) -> int:
    """Returns the number of held-out images of a search folder."""
    import torch

    from nas_moreau.data import stratified_split
    from nas_moreau.runs.history import Stage

    counts = Stage(folder).data.get("train", ())
    if not counts:
        return 0
    labels = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), torch.tensor(counts, device="cpu"))
    return len(stratified_split(labels, config.search.split.model_dump(), config.seed)["held_out"])


def _described(config: Config, output: Path) -> dict[str, Any]:
    """Returns the sizes of a run for --dry-run: images, splits, supernet, steps; nothing is written.

    Raises:
        InputError: As the run itself would.
    """
    import torch

    from nas_moreau.architecture import load_space
    from nas_moreau.data import load_images, stratified_split
    from nas_moreau.search.methods import search_supernet
    from nas_moreau.training.device import pick_device

    space, data, search = load_space(config.space), load_images(config), config.search
    with torch.device("meta"):
        supernet = search_supernet(space, search, data.num_classes, data.channels)
    splits = stratified_split(data.train.labels, search.split.model_dump(), config.seed)
    steps = search.steps_per_epoch or max(1, len(splits["weights"]) // search.batch_size)
    retrain_steps = config.retrain.steps_per_epoch or max(1, len(data.train) // config.retrain.batch_size)
    return {
        "output": str(output),
        "device": str(pick_device(config.device)),
        "data": {
            "name": data.name,
            "classes": data.num_classes,
            "train": len(data.train),
            "test": len(data.test),
            "image": list(data.input_size),
            "notes": list(data.notes),
        },
        "space": {"name": space.name, "genotypes": space.size()},
        "search": {
            "method": search.method,
            "epochs": search.all_epochs,
            "steps": steps * search.all_epochs,
            "supernet_weights": sum(p.numel() for p in supernet.weights()),
            **{name: len(split) for name, split in splits.items()},
        },
        "retrain": {"epochs": config.retrain.epochs, "steps": retrain_steps * config.retrain.epochs},
    }
