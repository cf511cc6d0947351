"""The page on the search inside a module and its worked examples, run at tiny sizes."""

import importlib.util
import re
import textwrap
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "search_inside_a_module.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (more,) = re.findall(r"^    found\.cost_table(?:.*\n)+?(?=\n)", text, re.MULTILINE)
    names = {}
    for code in (block, textwrap.dedent(more)):
        exec(compile(code.replace("steps=30", "steps=2"), "page", "exec"), names)
    assert set(names["found"].choices) == {"act"} and (tmp_path / "costs.json").exists()
    assert names["small"].costs()["parameters"] <= 60


@pytest.mark.parametrize(
    "name", ["signals", "unet", "bytes_transformer", pytest.param("timm_model", marks=pytest.mark.slow)]
)
def test_worked_examples(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.main(steps=2, count=60)
    network = found.network()
    assert not [part for part in network.modules() if type(part).__module__.startswith("nas_moreau")]
    rows = found.compare_random(2, steps=1, seeds=1).rows
    assert len(rows) == 3 and all(row.loss > 0 for row in rows)
    # what the command line needs of the file
    assert callable(module.make_model) and callable(module.loss) and len(module.train(60)) > 0
