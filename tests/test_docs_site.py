"""The documentation site builds without warnings, and docs/configuration.md is what the configuration's keys make.

Write that page again after a change of the keys:

    python docs/site/hooks.py
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas_moreau.config import config_keys

SITE = Path(__file__).parents[1] / "docs" / "site"
LACKING = [name for name in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", SITE / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_configuration_is_current(hooks):
    page = (SITE.parent / "configuration.md").read_text(encoding="utf-8")
    assert page == hooks.configuration_page(), "run python docs/site/hooks.py"
    assert all(f"| `{key}` | " in page for key in config_keys())


def test_the_reference_describes_every_public_name_once(hooks):
    described = {}
    pages = "\n".join(hooks.api_page(package, described) for package in hooks.PACKAGES)
    assert all(pages.count(f"::: {name}\n") == 1 for name in described)
    for name in ("api.run", "bilevel.solver.solve", "search.mixing.register_mixing", "modules.search.search_module"):
        assert f"nas_moreau.{name}" in described


@pytest.mark.slow
@pytest.mark.skipif(bool(LACKING), reason="needs the extra docs")
def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(SITE / "mkdocs.yml"), "-d", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    for page in ("index", "recipes", "configuration", "api/bilevel", "cite"):
        text = (tmp_path / f"{page}.html").read_text(encoding="utf-8")
        assert "<h1" in text and 'src="https:' not in text  # nothing is loaded from elsewhere
    assert 'id="nas_moreau.bilevel.solver.solve"' in (tmp_path / "api/nas_moreau.html").read_text(encoding="utf-8")
    assert (tmp_path / "checkpoints/released/watching/tensorboard.png").is_file()
