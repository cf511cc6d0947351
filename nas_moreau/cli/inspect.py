"""Verbs that inspect files and runs: show, check, report."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_moreau.cli.options import stage_folder
from nas_moreau.cli.output import note, print_table, print_text
from nas_moreau.cli.verbs import option, verb
from nas_moreau.errors import InputError
from nas_moreau.presets import preset_names, preset_text
from nas_moreau.runs.heartbeat import heartbeat
from nas_moreau.text import printable, specification

if TYPE_CHECKING:
    from nas_moreau.runs.history import Stage


@verb(
    "show",
    "print a preset, space, genotype or run",
    examples=["show cifar10", "show darts", "show DARTS_V2 --draw cell.svg", "show checkpoints/first --why"],
    options=[
        option("name", metavar="FILE-OR-NAME"),
        option("--draw", metavar="FILE", help="draw the cells and the whole network: FILE.svg or FILE.png"),
        option("--why", action="store_true", help="for a search: the chosen operation of every edge and its margin"),
    ],
)
def show(args: argparse.Namespace) -> Any:
    """Prints a preset, space, genotype or run."""
    name = _run_below_checkpoints(args.name) or args.name
    text, data = describe(name, args.why)
    if args.draw:
        draw(name, Path(args.draw))
        note(f"drawn: {args.draw}")
    if not args.json and name in preset_names():
        print(text.rstrip())  # YAML, to be copied
    elif not args.json:
        print_text(text.rstrip())
    return data


def _run_below_checkpoints(name: str) -> str | None:
    """Returns the folder of a run that is named as `list runs` shows it, without checkpoints/ before its name."""
    from nas_moreau.architecture.spaces.space import space_names
    from nas_moreau.architecture.spaces.zoo import cell_names
    from nas_moreau.runs.folder import DEFAULT_PARENT

    place = DEFAULT_PARENT / name
    taken = name in (*preset_names(), *space_names(), *cell_names()) or Path(name).exists()
    return str(place) if not taken and (place / "status.json").is_file() else None


def describe(name: str, why: bool = False) -> tuple[str, Any]:
    """Returns (text, data) of a preset, a space, a genotype or a run's genotype.

    Args:
        name: What to show.
        why: For a search: the chosen operation of every edge and its margin.

    Raises:
        InputError: `name` is none of them, or not a search where `why` is asked.
    """
    from nas_moreau.architecture.spaces.percentile import percentile
    from nas_moreau.architecture.spaces.space import load_space, space_names
    from nas_moreau.architecture.spaces.zoo import load_genotype
    from nas_moreau.config import load_config
    from nas_moreau.drawing.network import network_line
    from nas_moreau.report.choices import (
        alternative_lines,
        alternatives,
        choice_lines,
        explain_search,
        percentile_lines,
        search_lines,
    )
    from nas_moreau.runs.history import network_sizes

    if (module := _search_in_module(name)) is not None:
        return _choices(module, why)
    if why:
        rows = explain_search(name)
        genotype = load_genotype(name)
        others, rank = alternatives(genotype, rows), percentile(genotype)
        lines = [
            *search_lines(name),
            *percentile_lines(genotype),
            *choice_lines(rows, genotype),
            *alternative_lines(others),
        ]
        data = {"genotype": genotype.to_dict(), "edges": rows, "alternatives": others}
        return "\n".join(lines), data | ({} if rank is None else {"percentile": rank.to_dict()})
    if name in preset_names():
        return preset_text(name) + "\n# with all defaults:\n" + load_config(name).to_yaml(), load_config(name).to_dict()
    if name in space_names() or name.endswith((".yaml", ".yml")):
        space = load_space(name)
        lines = [
            f"{space.name}: skeleton {space.skeleton}, cells {', '.join(space.cells)}",
            f"operations: {', '.join(space.operations)}",
            f"edges: {', '.join(f'{a}-{b}' for a, b in space.edges)}",
            f"genotypes: {space.size():,}",
        ]
        return "\n".join(lines), {"name": space.name, "operations": list(space.operations), "genotypes": space.size()}
    genotype = load_genotype(name)
    lines = [f"{genotype.space}  digest {genotype.digest()}"]
    for cell, content in genotype.cells.items():
        lines += [f"{cell}: concat {', '.join(map(str, content.concat))}"]
        lines += [f"  {source} -> {target}  {operation}" for operation, source, target in content.edges]
    lines += [f"network: {network_line(genotype, network_sizes(genotype, name))}"]
    return "\n".join(lines + percentile_lines(genotype) + search_lines(name)), genotype.to_dict()


def _search_in_module(name: str) -> Stage | None:
    """Returns the run in a folder if it is a search inside a module."""
    from nas_moreau.runs.history import Stage

    stage = Stage(Path(name))
    return stage if (stage.path / "status.json").is_file() and stage.status.get("stage") == "module" else None


def _choices(search: Stage, why: bool) -> tuple[str, Any]:
    """Returns (text, data) of the choices in a module; with `why` the weights of all options."""
    from nas_moreau.report.module import choices_of

    weights, chosen = choices_of(search)
    if not weights:
        raise InputError(f"{search.path} has no choices yet.", "Wait for its first epoch.")
    lines = [f"module {(search.config.get('module') or {}).get('class', '?')}: {search.verdict or search.state}"]
    for name, found in chosen.items():
        ranked = sorted(weights[name], key=lambda other: -weights[name][other]) if why else [found]
        shown = ", ".join(f"{other} {weights[name][other]:.2f}" for other in ranked)
        lines.append(f"{name}: {found}  ({shown})" if why else f"{name}: {shown}")
    return "\n".join(map(printable, lines)), {"choices": chosen, "weights": weights}


def draw(name: str, target: Path) -> None:
    """Draws the cells of a genotype or run and their network into an .svg or .png file.

    Raises:
        InputError: Unknown genotype, or the file cannot be written.
    """
    from nas_moreau.architecture.spaces.zoo import load_genotype
    from nas_moreau.drawing.cell import genotype_scene
    from nas_moreau.drawing.choices import choices_scene
    from nas_moreau.drawing.network import add_network
    from nas_moreau.drawing.scene_png import paint_png
    from nas_moreau.drawing.scene_svg import paint_svg
    from nas_moreau.report.module import choices_of
    from nas_moreau.runs.history import find_search, network_sizes

    if target.suffix not in (".svg", ".png"):
        raise InputError(f"Unknown kind of drawing '{target.name}'.", "Use a name that ends in .svg or .png.")
    if (module := _search_in_module(name)) is not None:
        scene = choices_scene(*choices_of(module))
    else:
        genotype, folder = load_genotype(name), Path(name)
        search = find_search(folder)
        alphas = search.final_alphas if search is not None and search.genotype == genotype else None
        scene = genotype_scene(genotype, alphas)
        add_network(scene, genotype, network_sizes(genotype, folder))
    try:
        target.write_bytes(paint_svg(scene).encode() if target.suffix == ".svg" else paint_png(scene))
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}).", "Choose another file.") from error


@verb(
    "check",
    "check a configuration, space or genotype file, or images",
    examples=["check my_space.yaml", "check folder:photos", "check npz:mnist.npz --image-size 64"],
    options=[
        option("file", metavar="FILE-OR-DATA", help="a file, a run, or images as --data takes them"),
        option("--image-size", type=int, metavar="PIXELS", help="of images, as data.image_size"),
    ],
)
def check(args: argparse.Namespace) -> dict[str, Any]:
    """Prints what a file is, if it is valid, or what images are read."""
    from nas_moreau.data.sources import SOURCES

    name, colon, _ = args.file.partition(":")
    if name + colon in SOURCES and not Path(args.file).exists():
        return _check_images(args)
    kind = kind_of(args.file)
    result: dict[str, Any] = {"file": args.file, "kind": kind}
    if kind == "configuration":
        with heartbeat(f"trying {args.file} on this machine"):
            result["not_here"] = missing_here(args.file)
    if not args.json:
        print(f"{args.file} is a valid {kind}.")
        for problem in result.get("not_here", ()):
            print_text(f"not on this machine: {problem}")
    return result


def missing_here(file: str) -> list[str]:
    """Returns what a valid configuration needs and this machine lacks: its device, its images.

    Raises:
        InputError: Its search space or method is unknown.
    """
    from nas_moreau.architecture.spaces.space import load_space
    from nas_moreau.config import load_config
    from nas_moreau.data import load_images
    from nas_moreau.search.methods import parse_method
    from nas_moreau.training.device import pick_device

    config, found = load_config(None, file), []
    load_space(config.space)
    parse_method(config.search.method)
    for attempt in (lambda: pick_device(config.device), lambda: load_images(config)):
        try:
            attempt()
        except InputError as error:
            found.append(str(error))
    return found


def _check_images(args: argparse.Namespace) -> dict[str, Any]:
    """Prints what a data specification reads; its notes are printed as they are for a run."""
    with heartbeat(f"reading {args.file}"):
        from nas_moreau.data import describe_data, load_data

        found = describe_data(load_data(args.file, image_size=args.image_size))
    height, width = found["image_size"]
    if not args.json:
        print(f"{found['channels']} x {height} x {width} (channels, height, width)")
        rows = [*zip(found["classes"], map(str, found["train"]), map(str, found["test"]))]
        print_table(["class", "training", "test"], [*rows, ("all", str(sum(found["train"])), str(sum(found["test"])))])
    return {"file": args.file, "kind": "images", **found}


def kind_of(file: str) -> str:
    """Returns what a file is after checking all of it: a configuration, a search space or a genotype.

    Raises:
        InputError: It cannot be read or is not valid.
    """
    from nas_moreau.architecture.spaces.space import load_space
    from nas_moreau.architecture.spaces.zoo import load_genotype
    from nas_moreau.config import Config, load_config
    from nas_moreau.data.mistaken_paths import unpacking
    from nas_moreau.yaml_files import parse_yaml, read_text

    if Path(file).suffix in (".yaml", ".yml", ".json"):
        text = read_text(Path(file), "The file")
        found = parse_yaml(text, file, "Correct that line.")
        keys = set(found) if isinstance(found, dict) else set()
        if "operations" in keys:
            load_space(file)
            return "search space"
        is_genotype = Path(file).suffix == ".json" and ("cells" in keys or not keys & set(Config.model_fields))
        if not is_genotype:
            load_config(None, file)
            return "configuration"
    path = Path(file)
    if path.is_dir() and not any((path / place).exists() for place in ("genotype.json", "search/genotype.json")):
        raise InputError(
            f"{file} is a folder without a genotype.",
            f"If it holds images, write check {specification('folder', file)}.",
        )
    if path.is_file() and path.suffix in (".npz", ".zip"):
        cure = unpacking(path) or f"For images write check {specification('npz', file)}."
        raise InputError(f"{file} is neither a configuration nor a genotype.", cure)
    return f"genotype of {load_genotype(file).space}"


@verb(
    "report",
    "write report.html of runs, and a comparison of several",
    examples=["report checkpoints/first", "report checkpoints/seed0 checkpoints/seed1 --output comparison.html"],
    options=[
        option("runs", nargs="+", metavar="RUN"),
        option(
            "--output",
            metavar="FILE",
            help="default: report.html in the run; of several, comparison.html above them",
        ),
    ],
)
def report(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the reports and prints where they are."""
    with heartbeat("writing reports"):
        for run in args.runs:
            alone = ("solve",) if len(args.runs) == 1 else ()  # tasks are not compared with each other
            stage_folder(run, "run", "search", "retrain", "module", *alone)
        from nas_moreau.report import write_report, write_several_runs

        one = args.output if len(args.runs) == 1 else None
        paths = [str(write_report(Path(run), one)) for run in args.runs]
        result: dict[str, Any] = {"reports": paths}
        if len(args.runs) > 1:
            place = os.path.commonpath([os.path.dirname(os.path.abspath(run)) for run in args.runs])
            result["comparison"] = str(write_several_runs(args.runs, args.output or Path(place) / "comparison.html"))
            paths = [*paths, result["comparison"]]
    if not args.json:
        print("\n".join(paths))
    return result
