"""What `nas-moreau show` and `check` say of one thing by its name or file; no torch is loaded for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.space import load_space, space_names
from nas_moreau.architecture.spaces.zoo import load_genotype
from nas_moreau.config import load_config
from nas_moreau.drawing.network import add_network, network_line, sizes_of_run
from nas_moreau.errors import InputError
from nas_moreau.presets.by_name import preset_names, preset_text
from nas_moreau.runs.searched import alternative_lines, alternatives, choice_lines, explain_search, search_lines
from nas_moreau.yaml_files import read_text


def show(name: str, why: bool = False) -> tuple[str, Any]:
    """Returns (text, data) of a preset, a space, a genotype or a run's genotype.

    Args:
        name: What to show.
        why: Of a search: for every edge what was chosen, and by how much.

    Raises:
        InputError: `name` is none of them, or no search where `why` is asked.
    """
    if why:
        rows = explain_search(name)
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
    from nas_moreau.drawing.cell import genotype_scene
    from nas_moreau.drawing.scene_png import paint_png
    from nas_moreau.drawing.scene_svg import paint_svg
    from nas_moreau.report.read_run import final_weights, read_run

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
    path = Path(file)
    if path.suffix in (".yaml", ".yml"):
        if any(line.startswith("operations:") for line in read_text(path, "The file").splitlines()):
            load_space(file)
            return "search space"
        load_config(None, file)
        return "configuration"
    genotype: Genotype = load_genotype(file)
    return f"genotype of {genotype.space}"
