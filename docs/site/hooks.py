"""What the site has beyond the pages in docs/: an API reference, notebooks as pages, and the files that pages link to.

mkdocs calls the functions named `on_...`. Run as a program, this file writes docs/configuration.md.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = {
    "nas_moreau": "the names that most programs need",
    "nas_moreau.bilevel": "the solver for any F, f, g",
    "nas_moreau.problems": "problems with known answers",
    "nas_moreau.architecture": "spaces, genotypes, supernets, networks",
    "nas_moreau.modules": "the search inside a module",
    "nas_moreau.search": "the search, its mixings and derivation rules",
    "nas_moreau.training": "hooks, retraining, evaluation",
    "nas_moreau.compare": "methods and seeds under one protocol",
    "nas_moreau.data": "sources, splits, batches",
    "nas_moreau.config": "the configuration",
    "nas_moreau.runs": "run folders, checkpoints, metrics",
    "nas_moreau.report": "reports and comparisons as pages",
    "nas_moreau.drawing": "drawings of cells and networks",
    "nas_moreau.distributed": "several processes",
}
"""Packages of the API reference, in its order."""
CONFIGURATION = """# Configuration

Every key of a configuration, made from `nas_moreau.config`. Any of them can be set on the command line, in a YAML file,
or from Python:

    nas-moreau run --preset cpu search.epochs=10 seed=3
    nas-moreau run --config mine.yaml
    nas-moreau config search.moreau.gamma

In Python: `nas_moreau.run("cpu", search={"epochs": 10}, seed=3)`. `nas-moreau config --preset cpu > mine.yaml` writes a
file to edit, with a comment on every key; `nas-moreau config --schema` is the JSON schema for editors that check YAML.
Unknown keys, values of another type or out of bounds are refused, all of them at once.
"""


def api_page(package: str, elsewhere: dict[str, str]) -> str:
    """Returns the page of a package: a heading, its docstring, and for each public name what mkdocstrings makes of it.

    Args:
        package: Full name.
        elsewhere: Full name of every object described on an earlier page -> that page; extended by this one's.
    """
    module = import_module(package)
    lines = [f"# {package}", "", f"{module.__doc__}".strip(), ""]
    listed = []
    for name in sorted(module.__all__, key=str.lower):
        found = getattr(module, name)
        home, qualified = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
        if isinstance(found, type(json)):  # a package that can be called
            found = getattr(import_module(found._home), name)
            home, qualified = found.__module__, found.__qualname__
        if not home or not qualified or not home.startswith("nas_moreau"):
            continue  # plain data
        full = f"{home}.{qualified}"
        if full in elsewhere:
            listed.append(f"[`{name}`][{full}]")
        else:
            elsewhere[full] = package
            lines += [f"::: {full}", ""]
    if listed:
        lines[4:4] = [f"Described elsewhere: {', '.join(listed)}.", ""]
    return "\n".join(lines)


def configuration_page() -> str:
    """Returns docs/configuration.md: every key of a configuration, a table for each section."""
    from nas_moreau.config import config_keys
    from nas_moreau.config.keys import Key, section_meanings

    meanings = section_meanings()
    sections: dict[str, list[Key]] = {}
    for row in config_keys().values():
        sections.setdefault(row.key.rpartition(".")[0], []).append(row)
    lines = [CONFIGURATION]
    for section, keys in sections.items():
        title = f"`{section}`" if section else "Top level"
        lines += [f"## {title}", "", *([meanings[section], ""] if section else [])]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for row in keys:
            cells = [f"`{row.key}`", row.type, f"`{_plain(row.default)}`", row.meaning]
            lines.append(f"| {' | '.join(_cell(text) for text in cells)} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def notebook_page(notebook: Path) -> dict[str, str]:
    """Returns the site's files for a notebook: a page of its text, its code and what came out, and the drawings.

    Args:
        notebook: The .ipynb file, executed.
    """
    lines, files = [], dict[str, str]()
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        lines += [source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```", ""]
        for output in cell.get("outputs", []):
            shown = output.get("data", {"text/plain": output.get("text", [])})
            if "image/svg+xml" in shown:
                name = f"{notebook.stem}_{len(files) + 1}.svg"
                files[f"examples/{name}"] = "".join(shown["image/svg+xml"])
                lines += [f"![drawing]({name})", ""]
            else:
                lines += [f"```{{.text .output}}\n{''.join(shown['text/plain']).rstrip()}\n```", ""]
    return files | {f"examples/{notebook.stem}.md": "\n".join(lines)}


def citation_page() -> str:
    """Returns the page on how to cite, from CITATION.cff."""
    import yaml

    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    lines = ["# How to cite", "", cff["message"], "", f"* {cff['title']} {cff['version']} ({cff['license']} licence)"]
    for paper in cff["references"]:
        names = ", ".join(f"{author['given-names']} {author['family-names']}" for author in paper["authors"])
        lines.append(f"* {names}: [{paper['title']}]({paper['url']}). {paper['collection-title']}, {paper['year']}.")
    return "\n".join(lines) + "\n"


def linked_files() -> list[str]:
    """Returns the paths, from the top of the repository, of files outside of docs/ that pages link to."""
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    return sorted(set(re.findall(r"\]\(\.\./([^)#]+)", text)))


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages and the linked files."""
    from mkdocs.structure.files import File

    described: dict[str, str] = {}
    pages = {f"api/{name.rpartition('.')[2]}.md": api_page(name, described) for name in PACKAGES}
    rows = [f"| [{name}]({name.rpartition('.')[2]}.md) | {what} |" for name, what in PACKAGES.items()]
    pages["api/index.md"] = "\n".join(["# API", "", "| package | content |", "|---|---|", *rows]) + "\n"
    pages["cite.md"] = citation_page()
    pages["changelog.md"] = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    for notebook in sorted((DOCS / "examples").glob("*.ipynb")):
        pages |= notebook_page(notebook)
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    files.append(File.generated(config, "assets/extra.css", abs_src_path=str(Path(__file__).with_name("extra.css"))))
    for name in linked_files():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_config(config: Any) -> Any:
    """Adds the API reference to the navigation."""
    config.nav.append({"API": ["api/index.md", *(f"api/{name.rpartition('.')[2]}.md" for name in PACKAGES)]})
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Points links out of docs/, and those to notebooks, to what `on_files` added."""
    if "/" in page.file.src_uri:
        return markdown
    return markdown.replace("](../", "](").replace(".ipynb)", ".md)")


if __name__ == "__main__":
    (DOCS / "configuration.md").write_text(configuration_page(), encoding="utf-8")
