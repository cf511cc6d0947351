"""The shape of the package: sizes of rooms and modules, signatures, the formatter's exceptions."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

import nas_moreau

ROOT = Path(nas_moreau.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
LINES = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}

LARGEST_SHARE, MOST_MODULES = 0.15, 25
SHORTEST, LONGEST = 30, 400
MOST_ARGUMENTS, MOST_SKIPS = 8, 15

# module -> why it is shorter or longer than the others
OTHER_LENGTH: dict[str, str] = {}
# module:function -> why it takes more than eight arguments
MANY_ARGUMENTS: dict[str, str] = {
    "bilevel/moreau_envelope.py:moreau": "the constants and update rules of the algorithm, each by name",
    "bilevel/solver.py:solve": "the one entry point of the solver; all but the problem and the start are keywords",
    "bilevel/stationarity.py:lower_solution": "the lower level, the proximal term and the limits, each by name",
    "bilevel/stationarity.py:merit": "the quantities of equation (16), each by name",
    "kernels/cell.py:_fake_backward": "the signature of the C++ operator",
    "kernels/depthwise.py:_gather": "a kernel: it reads pointers, sizes and constants alone",
    "kernels/depthwise.py:_weight_gradient": "a kernel: it reads pointers, sizes and constants alone",
    "modules/front_search.py:pareto": "those of search_module, and what a front needs; all but three are keywords",
    "modules/search.py:search_module": "the arguments of the contract; all but module, loss and data are keywords",
    "timm_models.py:__init__": "the arguments that timm passes to a model, by timm's names",
}


def room(name: str) -> str:
    """`architecture/spaces/space.py` -> `architecture/spaces`; a module at the top is a room of its name."""
    divided = ("architecture", "bilevel")
    parts = Path(name).parts
    if len(parts) == 1:
        return parts[0].removesuffix(".py")
    return "/".join(parts[:2]) if parts[0] in divided and len(parts) > 2 else parts[0]


def test_no_room_is_a_warehouse():
    lines, modules = Counter(), Counter()
    for name, count in LINES.items():
        lines[room(name)] += count
        modules[room(name)] += not name.endswith("__init__.py")
    largest = {name: count / sum(lines.values()) for name, count in lines.items()}
    assert not {name: share for name, share in largest.items() if share > LARGEST_SHARE}
    assert not {name: count for name, count in modules.items() if count > MOST_MODULES}
    assert not (ROOT / "stages").exists()


def test_short_and_long_modules_have_a_reason():
    odd = {
        name
        for name, count in LINES.items()
        if not SHORTEST <= count <= LONGEST and Path(name).name not in ("__init__.py", "__main__.py")
    }
    assert odd - set(OTHER_LENGTH) == set(), "merge or split them, or give a reason"
    assert set(OTHER_LENGTH) - odd == set(), "no longer needed"


def test_functions_with_many_arguments_have_a_reason():
    many = set()
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if len([a for a in given if a.arg not in ("self", "cls")]) > MOST_ARGUMENTS:
                    many.add(f"{name}:{node.name}")
    assert many - set(MANY_ARGUMENTS) == set()
    assert set(MANY_ARGUMENTS) - many == set(), "no longer needed"


@pytest.mark.parametrize("name", TREES)
def test_no_call_passes_two_positional_booleans(name):
    calls = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    bad = [
        call.lineno
        for call in calls
        if sum(isinstance(a, ast.Constant) and isinstance(a.value, bool) for a in call.args) > 1
    ]
    assert not bad


def test_the_formatter_is_hardly_ever_overruled():
    sources = [*SOURCES, *(ROOT.parent / "tests").rglob("*.py"), *(ROOT.parent / "scripts").rglob("*.py")]
    mark = "# fmt: " + "skip"
    skips = {str(path): text.count(mark) for path in sources if mark in (text := path.read_text(encoding="utf-8"))}
    assert sum(skips.values()) <= MOST_SKIPS, skips
