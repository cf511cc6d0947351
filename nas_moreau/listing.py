"""What `nas-moreau list`, `show` and `check` say; none of it loads torch but for the table of methods.

Configurations and runs are imported where they are shown: to list spaces takes neither.
"""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nas_moreau.architecture.genotype import Genotype
from nas_moreau.architecture.space import KNOWN_OPERATIONS, load_space, space_names
from nas_moreau.architecture.zoo import cell_names, load_genotype, source
from nas_moreau.errors import InputError
from nas_moreau.plain_yaml import read_text
from nas_moreau.presets.by_name import preset_names, preset_text

DATA = {
    "shapes": "embedded: 10 classes of generated 32x32 RGB images, needs no file",
    "cifar10": "torchvision (--download fetches it)",
    "cifar100": "torchvision (--download fetches it)",
    "fashion_mnist": "torchvision (--download fetches it)",
    "omniglot": "torchvision (--download fetches it)",
    "folder:DIR": "train/CLASS/* and test/CLASS/*",
    "npz:FILE": "uint8 NHWC arrays x_train y_train x_test y_test",
    "idx:DIR": "MNIST-style gz files",
    "omniglot:DIR": "Alphabet/character/*.png",
}


def rows(what: str, output: Path) -> list[dict[str, Any]]:
    """Returns the table of `nas-moreau list WHAT`."""
    if what == "spaces":
        spaces = [load_space(name) for name in space_names()]
        return [{"name": s.name, "genotypes": f"{s.size():,}", "operations": ", ".join(s.operations)} for s in spaces]
    if what == "operations":
        return [{"name": name} for name in KNOWN_OPERATIONS]
    if what == "presets":
        return [{"name": name, "command": _first_comment(preset_text(name))} for name in preset_names()]
    if what == "methods":
        from nas_moreau.stages.methods import ADDITIONS, METHODS

        added = ", ".join(f"+{addition}" for addition in ADDITIONS)
        named = {name: added if entry.choose is None else "-" for name, entry in METHODS.items()}
        return [{"name": name, "additions": additions} for name, additions in (named | {"random": "-"}).items()]
    if what == "tasks":
        from nas_moreau.stages import solve, solve_networks

        small = [{"name": name, "what": task.what} for name, task in solve.TASKS.items()]
        return [*small, *({"name": name, "what": what} for name, what in solve_networks.TASKS.items())]
    if what == "cells":
        return [{"name": name, "digest": load_genotype(name).digest(), "source": source(name)} for name in cell_names()]
    if what == "data":
        return [{"name": name, "what": text} for name, text in DATA.items()]
    return _runs(output)


def _first_comment(text: str) -> str:
    return text.splitlines()[0].lstrip("# ")


def _runs(output: Path) -> list[dict[str, Any]]:
    found = []
    for status in sorted(output.glob("*/status.json")):
        try:
            state = json.loads(status.read_text(encoding="utf-8"))
            result_file = status.parent / "result.json"
            result = json.loads(result_file.read_text(encoding="utf-8")) if result_file.exists() else {}
        except (OSError, ValueError):
            state, result = {"state": "unreadable"}, {}
        whole = result.get("retrain", result)
        known = (whole.get(name) for name in ("test_accuracy", "held_out_accuracy", "accuracy"))
        accuracy = next((value for value in known if value is not None), None)
        found.append({
            "run": str(status.parent), "stage": state.get("stage", "?"), "state": state.get("state", "?"),
            "accuracy": "-" if accuracy is None else f"{100 * accuracy:.2f} %",
            "age": age(state.get("updated", "")), "updated": state.get("updated", "?"),
        })  # fmt: skip
    return found


def age(moment: str, now: datetime | None = None) -> str:
    """Returns how long ago `moment` (ISO 8601, with its zone) was, "3 h ago" for example; "?" for anything else."""
    try:
        then = datetime.fromisoformat(moment.replace("Z", "+00:00"))
        seconds = ((now or datetime.now(timezone.utc)) - then).total_seconds()
    except (AttributeError, TypeError, ValueError):
        return "?"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit.rstrip('s') if count == 1 else unit} ago"
    return "just now"


def show(name: str, why: bool = False) -> tuple[str, Any]:
    """Returns (text, data) of a preset, a space, a genotype or a run's genotype.

    Args:
        name: What to show.
        why: Of a search: for every edge what was chosen, and by how much.

    Raises:
        InputError: `name` is none of them, or no search where `why` is asked.
    """
    from nas_moreau.config import load_config
    from nas_moreau.runs.network_drawing import network_line, sizes_of_run
    from nas_moreau.runs.searched import alternative_lines, alternatives, choice_lines, choices, search_lines

    if why:
        rows = choices(name)
        others = alternatives(load_genotype(_genotype_file(name)), rows)
        lines = [*search_lines(name), *choice_lines(rows), *alternative_lines(others)]
        return "\n".join(lines), {"genotype": show(name)[1], "edges": rows, "alternatives": others}
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
    genotype = load_genotype(_genotype_file(name))
    lines = [f"{genotype.space}  digest {genotype.digest()}"]
    for cell, content in genotype.cells.items():
        lines += [f"{cell}: concat {', '.join(map(str, content.concat))}"]
        lines += [f"  {source} -> {target}  {operation}" for operation, source, target in content.edges]
    lines += [f"network: {network_line(genotype, sizes_of_run(genotype, Path(name)))}"]
    return "\n".join(lines + search_lines(name)), json.loads(genotype.to_json())


def draw(name: str, target: Path) -> None:
    """Draws the cells of a genotype or run, and the network made of them, into an .svg or .png file.

    Raises:
        InputError: There is no genotype of that name, or the file cannot be written.
    """
    from nas_moreau.runs.drawing import genotype_scene
    from nas_moreau.runs.network_drawing import add_network, sizes_of_run
    from nas_moreau.runs.report_data import final_weights, read_run
    from nas_moreau.runs.scene_png import paint_png
    from nas_moreau.runs.scene_svg import paint_svg

    if target.suffix not in (".svg", ".png"):
        raise InputError(f"{target} names no kind of drawing.", "Let it end in .svg or .png.")
    genotype, folder = load_genotype(_genotype_file(name)), Path(name)
    search = read_run(folder).search if os.path.exists(folder / "status.json") else None
    weights = final_weights(search) if search is not None and search.genotype == genotype else None
    scene = genotype_scene(genotype, weights)
    add_network(scene, genotype, sizes_of_run(genotype, folder))
    try:
        target.write_bytes(paint_svg(scene).encode() if target.suffix == ".svg" else paint_png(scene))
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}).", "Name another file.") from error


def _genotype_file(name: str) -> str:
    for place in (name, os.path.join(name, "search")):
        if os.path.exists(found := os.path.join(place, "genotype.json")):  # a genotype's text is no possible path
            return found
    return name


def check(file: str) -> str:
    """Returns what a file is, after checking all of it: configuration, search space or genotype.

    Raises:
        InputError: It cannot be read or is not valid.
    """
    from nas_moreau.config import load_config

    path = Path(file)
    if path.suffix in (".yaml", ".yml"):
        if any(line.startswith("operations:") for line in read_text(path, "The file").splitlines()):
            load_space(file)
            return "search space"
        load_config(None, file)
        return "configuration"
    genotype: Genotype = load_genotype(file)
    return f"genotype of {genotype.space}"
