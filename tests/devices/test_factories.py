"""No tensor of the package is made without a word on where: in a run on a GPU it would lie on the CPU."""

import ast
from pathlib import Path

import pytest

import nas_moreau

PACKAGE = Path(nas_moreau.__file__).parent
# (from_numpy and frombuffer take no device: they read the memory of the CPU)
FACTORIES = {
    "arange",
    "as_tensor",
    "bartlett_window",
    "blackman_window",
    "empty",
    "empty_strided",
    "eye",
    "full",
    "Generator",
    "hann_window",
    "linspace",
    "logspace",
    "normal",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "range",
    "scalar_tensor",
    "tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
}

# file, or file:function -> why it need not say where
EXCEPTIONS = {
    "architecture/networks/operations.py:PlainBatchNorm.__init__": "follows `with torch.device(...)` as torch does",
}


def calls(source: str):
    """Yields (function, factory, line) of every call torch.FACTORY(...) without device=, methods as Class.method."""

    def visit(node, names):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = [*names, node.name]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES:
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            said = {keyword.arg for keyword in node.keywords}
            if of_torch and not said & {"device", None}:  # None: **more may bring it
                yield ".".join(names), node.func.attr, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child, names)

    yield from visit(ast.parse(source), [])


def found():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for function, factory, line in calls(path.read_text(encoding="utf-8")):
            yield name, function, factory, line


def test_every_tensor_is_made_on_a_stated_device():
    loose = [
        f"{name}:{line} torch.{factory} in {function}"
        for name, function, factory, line in found()
        if name not in EXCEPTIONS and f"{name}:{function}" not in EXCEPTIONS
    ]
    assert not loose, "\n".join(loose)


def test_no_exception_is_out_of_date():
    needed = {place for name, function, _, _ in found() for place in (name, f"{name}:{function}")}
    assert set(EXCEPTIONS) <= needed and all(EXCEPTIONS.values())


@pytest.mark.parametrize(
    "source, count",
    [
        ("torch.zeros(3)", 1),
        ("torch.zeros(3, device=d)", 0),
        ("torch.zeros_like(x)", 0),
        ("x.new_zeros(3)", 0),
        ("def f():\n    return torch.Generator().manual_seed(0)", 1),
        ("torch.full((2,), 1.0, **more)", 0),
        ("numpy.zeros(3)", 0),
        ("nn.init.ones(x)", 0),
    ],
)
def test_what_counts_as_a_tensor_made_without_a_device(source, count):
    assert len(list(calls(source))) == count


def test_no_kind_of_accelerator_is_named():
    """Code that names one would run on that one alone."""
    named = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("cuda", "mps", "xpu"))
        or (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.split(":")[0] in ("cuda", "mps")
        )
    ]
    assert not named
