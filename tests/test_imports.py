"""Who may import whom, what stays light, and that packages hand on the names they promise."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import nas_moreau

ROOT = Path(nas_moreau.__file__).parent
SOURCES = sorted(path for path in ROOT.rglob("*.py") if path.parent.name != "search_spaces")
PACKAGES = ["nas_moreau"] + [
    f"nas_moreau.{m.name}" for m in pkgutil.iter_modules([str(ROOT)]) if m.ispkg and m.name != "search_spaces"
]

# room -> the rooms it may import besides itself, from the lowest to the highest; nothing imports the command line
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "lazy_exports": set(),
    "text": set(),
    "errors": {"text"},
    "distributed": {"errors"},
    "bilevel": set(),
    "kernels": {"errors"},
    "yaml_files": {"errors"},
    "plugins": {"errors"},
    "presets": {"errors"},
    "config": {"errors", "yaml_files", "presets"},
    "architecture": {"distributed", "errors", "kernels", "yaml_files"},
    "data": {"config", "distributed", "errors", "text"},
    "timm_models": {"architecture", "errors"},
    "drawing": {"architecture", "errors"},
    "runs": {"architecture", "config", "drawing", "errors", "text", "yaml_files"},
    "training": {"architecture", "config", "data", "distributed", "drawing", "errors", "runs", "text", "timm_models"},
    "problems": {"bilevel", "config", "data", "drawing", "errors", "report", "runs", "text", "training"},
    "search": {
        "architecture",
        "bilevel",
        "config",
        "data",
        "distributed",
        "drawing",
        "errors",
        "runs",
        "timm_models",
        "training",
    },
    "modules": {
        "architecture",
        "bilevel",
        "config",
        "data",
        "distributed",
        "drawing",
        "errors",
        "report",
        "runs",
        "search",
        "training",
    },
    "report": {"architecture", "config", "drawing", "errors", "runs", "search", "text"},
    "export": {
        "architecture",
        "config",
        "data",
        "errors",
        "plugins",
        "runs",
        "search",
        "text",
        "timm_models",
        "training",
    },
    "pipeline": {"architecture", "config", "data", "distributed", "errors", "report", "runs", "search", "training"},
    "api": {
        "architecture",
        "config",
        "data",
        "drawing",
        "errors",
        "export",
        "pipeline",
        "presets",
        "report",
        "runs",
        "search",
        "training",
    },
    "compare": {
        "architecture",
        "bilevel",
        "config",
        "data",
        "distributed",
        "errors",
        "export",
        "plugins",
        "python_command",
        "report",
        "runs",
        "search",
        "training",
    },
    "diagnostics": {
        "architecture",
        "bilevel",
        "config",
        "data",
        "distributed",
        "errors",
        "export",
        "kernels",
        "plugins",
        "problems",
        "python_command",
        "runs",
        "search",
        "training",
    },
}
UNBOUND = {"cli", "__main__"}
LIGHT = [
    "errors",
    "config",
    "architecture",
    "architecture.spaces.space",
    "architecture.spaces.genotype",
    "architecture.spaces.derivation",
    "architecture.spaces.percentile",
    "architecture.spaces.zoo",
]
HEAVY = {"torch", "torchvision", "timm", "tensorboard", "matplotlib"}


def room(module: str) -> str:
    """`nas_moreau.runs.folder` -> `runs`; the package itself is ``."""
    return [*module.split("."), ""][1]


def named_imports(tree: ast.AST, path: Path) -> Iterator[tuple[str, str | None]]:
    """(module, name in it or None) of every import of a file, at any depth of its code, hidden ones included."""
    parent = ["nas_moreau", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join([*parent[: len(parent) + 1 - node.level], node.module or ""]).rstrip(".")
            yield from ((module if node.level else str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if called.lstrip("_") in ("import_module", "import__") and isinstance(first, ast.Constant):
                yield str(first.value), None


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports by its full name."""
    for module, name in named_imports(ast.parse(path.read_text(encoding="utf-8")), path):
        if module == "nas_moreau":  # `from nas_moreau import listing` imports a module, `__version__` does not
            if name is not None and not name.startswith("_"):
                yield f"nas_moreau.{name}"
        else:
            yield module


def module_name(path: Path) -> str:
    """`.../nas_moreau/runs/__init__.py` -> `nas_moreau.runs`."""
    parts = ["nas_moreau", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def handed_on(path: Path) -> dict[str, str]:
    """Name -> module within the package, of the call of `lazy_exports` in a package's `__init__`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "").lstrip("_") == "lazy_exports"
            and len(node.args) == 2
        ):
            return dict(ast.literal_eval(node.args[1]))
    return {}


class WithoutTyping(ast.NodeTransformer):
    """Leaves out what stands under `if TYPE_CHECKING`: it is never run."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if getattr(node.test, "id", "") == "TYPE_CHECKING" else self.generic_visit(node)


def import_graph() -> dict[str, set[str]]:
    """Module of the package -> the modules that it imports when it runs; names of packages stand for their homes."""
    files = {module_name(path): path for path in SOURCES}
    homes = {name: handed_on(path) for name, path in files.items() if path.name == "__init__.py"}

    def home(module: str, name: str | None) -> str:
        if f"{module}.{name}" in files:
            return f"{module}.{name}"
        within = homes.get(module, {}).get(str(name))
        return module if within is None else home(f"{module}.{within}", name)

    graph = {}
    for module, path in files.items():
        tree = WithoutTyping().visit(ast.parse(path.read_text(encoding="utf-8")))
        graph[module] = {home(*found) for found in named_imports(tree, path)} & set(files) - {module}
    return graph


def defined(path: Path) -> set[str]:
    """The names that a module defines at its top, or hands on by `import name as name`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
    return names


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_imports_go_one_way(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    mine = {room(name) for name in imports(path) if name.split(".")[0] == "nas_moreau"}
    mine -= {own, "", "lazy_exports"}  # every package makes its exports with it
    assert own == "__main__" or "cli" not in mine, "nothing imports the command line"
    if own not in UNBOUND:
        assert own in MAY_IMPORT, f"{own} is a new room: say in MAY_IMPORT what it may import"
        assert mine <= MAY_IMPORT[own], f"{own} must not import {sorted(mine - MAY_IMPORT[own])}"


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_names_come_from_where_they_are_defined(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("nas_moreau."):
            continue
        home = ROOT.parent.joinpath(*node.module.split(".")).with_suffix(".py")
        if home.exists():  # packages hand names on
            assert {alias.name for alias in node.names} <= defined(home), f"{node.module} does not define these"
            assert not any(alias.name.startswith("_") for alias in node.names), f"{node.module} keeps these for itself"


@pytest.mark.parametrize("path", sorted((ROOT / "bilevel").rglob("*.py")), ids=lambda path: path.name)
def test_the_solver_needs_torch_alone(path):
    roots = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert roots <= {"torch", "nas_moreau"}


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "a.py"
    path.write_text(
        "import os.path, numpy as np\nfrom nas_moreau import cli, __version__\nfrom . import b\nfrom .c import d\n"
        "from ..data import e\ndef f():\n    from nas_moreau.search.stage import g\n"
        "    import_module('nas_moreau.drawing.cell').h()\n    importlib.import_module(f)\n    __import__('json')\n",
        encoding="utf-8",
    )
    assert set(imports(path)) == {
        "os.path",
        "numpy",
        "nas_moreau.cli",
        "nas_moreau.runs",
        "nas_moreau.runs.c",
        "nas_moreau.data",
        "nas_moreau.search.stage",
        "nas_moreau.drawing.cell",
        "json",
    }


def test_no_module_imports_itself_by_way_of_others():
    """Imports within functions count, too: what a cycle hides is that two modules have one subject."""
    left = import_graph()
    while free := {module for module, needs in left.items() if not needs & set(left)}:
        for module in free:
            del left[module]
    # what is left imports a cycle or is part of one
    while ends := set(left) - {needed for needs in left.values() for needed in needs}:
        for module in ends:
            del left[module]
    assert not left, {module: sorted(needs & set(left)) for module, needs in left.items()}


def test_importing_the_package_loads_nothing_heavy():
    loaded = run_python("import sys, nas_moreau; print(*(m.split('.')[0] for m in sys.modules))").split()
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_without_torch(module):
    loaded = run_python(f"import sys, nas_moreau.{module}; print(*(m.split('.')[0] for m in sys.modules))").split()
    assert "nas_moreau" in loaded and not HEAVY & set(loaded)


def test_spaces_genotypes_and_derivation_work_without_torch():
    code = """
import random, sys
from nas_moreau.architecture import Genotype, derive, explain, load_genotype, load_space
space = load_space("toy")
genotype = derive(space, {name: [[0.0] * 4] * 5 for name in space.cells})
space.check(genotype)
assert Genotype.parse(genotype.to_printed(), space="toy") == genotype and len(explain(space, {
    name: [[0.0] * 4] * 5 for name in space.cells})) == 10
load_space("darts").check(load_genotype("MEHA"))
print("torch" in sys.modules)
"""
    assert run_python(code) == "False"


def test_the_solver_brings_nothing_else_of_the_package_with_it():
    names = [path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / "bilevel").rglob("*.py")]
    modules = ", ".join("nas_moreau." + ".".join(name) for name in names if name[-1] != "__init__")
    code = f"import sys, {modules}; print(*(m for m in sys.modules if m.startswith('nas_moreau.')))"
    assert {room(name) for name in run_python(code).split()} == {"bilevel", "lazy_exports"}


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_export_their_public_names_and_nothing_else(name):
    package = importlib.import_module(name)
    modules = {m.name for m in pkgutil.iter_modules(package.__path__)}
    # an import of such a module would put it in the place of the function
    assert all(callable(getattr(package, module)) for module in modules & set(package.__all__))
    assert set(package.__all__) <= set(dir(package))
    for promised in package.__all__:
        assert getattr(package, promised) is not None
    with pytest.raises(AttributeError):
        _ = package.no_such_name
    by_accident = {found for found in vars(package) if not found.startswith("_")} - modules - set(package.__all__)
    assert not by_accident


def test_type_checkers_see_every_public_name_where_it_is_defined():
    stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    seen = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(seen) == set(nas_moreau.__all__)
    for name, module in seen.items():
        found = getattr(nas_moreau, name)
        assert isinstance(found, ModuleType) or getattr(importlib.import_module(module), name) is found
