"""What is shipped: every package of the tree is listed, and data files are carried along."""

from pathlib import Path

import pytest

import nas_moreau

ROOT = Path(nas_moreau.__file__).parent.parent

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None


@pytest.mark.skipif(
    tomllib is None or not (ROOT / "pyproject.toml").exists(), reason="needs a checkout and Python 3.11's TOML reader"
)
def test_every_package_and_every_kind_of_data_file_is_listed():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in ROOT.glob("nas_moreau/**/__init__.py")}
    assert set(tool["packages"]) == packages | {"nas_moreau.released", "nas_moreau.search_spaces"}
    for path in [*ROOT.glob("nas_moreau/**/*"), *ROOT.glob("search_spaces/*")]:
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            package = ".".join(path.relative_to(ROOT).parts[:-1]).replace("search_spaces", "nas_moreau.search_spaces")
            assert any(path.match(pattern) for pattern in tool["package-data"].get(package, [])), path


def test_no_module_bears_the_name_of_a_function_its_package_hands_on():
    for package in ("architecture", "bilevel", "data", "runs", "search"):
        init = (Path(nas_moreau.__file__).parent / package / "__init__.py").read_text()
        modules = {p.stem for p in (Path(nas_moreau.__file__).parent / package).glob("*.py")}
        for module in modules - {"__init__"}:
            assert f'    "{module}": "' not in init, (package, module)
