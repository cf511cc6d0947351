"""`nas-moreau config`: what keys mean, a commented preset that is the preset, the schema."""

import json

import pytest
import yaml

from nas_moreau.cli import main
from nas_moreau.config import config_keys, load_config, make_config
from nas_moreau.presets import preset_names


def call(capsys, *words):
    code = main(list(words))
    return code, *capsys.readouterr()


def test_all_keys_have_one_line_each(capsys):
    code, out, _ = call(capsys, "config")
    lines = [line.split()[0] for line in out.splitlines()]
    assert code == 0 and lines == list(config_keys())


def test_a_section_prints_its_keys(capsys):
    code, out, _ = call(capsys, "config", "search.moreau")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        key for key in config_keys() if key.startswith("search.moreau.")
    ]


def test_a_key_prints_meaning_type_default_and_the_presets_that_set_it(capsys):
    code, out, _ = call(capsys, "config", "search.moreau.gamma")
    assert code == 0
    for text in (config_keys()["search.moreau.gamma"].meaning, "number > 0", "100.0", "meha_paper 200.0"):
        assert text in " ".join(out.split())
    code, out, _ = call(capsys, "config", "search.moreau.gamma", "--json")
    (row,) = json.loads(out)
    assert row["presets"] == {"meha_paper": 200.0} and row["default"] == 100.0


@pytest.mark.parametrize("name", preset_names())
def test_the_commented_preset_is_the_preset(name, capsys):
    code, out, _ = call(capsys, "config", "--preset", name)
    assert code == 0 and make_config(yaml.safe_load(out)) == load_config(name)
    assert sum(line.lstrip().startswith("#") for line in out.splitlines()) > len(config_keys())
    assert max(map(len, out.splitlines())) <= 120


def test_the_schema_describes_every_key(capsys):
    code, out, _ = call(capsys, "config", "--schema")
    schema = json.loads(out)
    assert code == 0 and schema["additionalProperties"] is False
    assert schema["$defs"]["MoreauConfig"]["properties"]["gamma"]["exclusiveMinimum"] == 0
    parts = schema["$defs"].values()
    assert all("description" in part for part in parts)
    assert all("description" in row or "$ref" in row for part in parts for row in part["properties"].values())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["search.epoch"], ["'search.epoch'", "search.epochs"]),
        (["epochs"], ["search.epochs", "retrain.epochs"]),
        (["quaternion"], ["'quaternion'"]),
        (["--preset", "smokey"], ["'smokey'", "'smoke'"]),
        (["seed", "--schema"], ["--schema"]),
    ],
)
def test_mistakes(words, named, capsys):
    code, out, err = call(capsys, "config", *words)
    assert code == 2 and out == "" and all(text in err for text in named)
