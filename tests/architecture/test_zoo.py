"""Published cells and the places a genotype can be loaded from."""

from __future__ import annotations

import pytest

from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.space import load_space
from nas_moreau.architecture.spaces.zoo import (
    cell_names,
    load_genotype,
    provenance,
    published_cell,
    published_names,
    released_names,
    source,
)
from nas_moreau.errors import InputError

NAMES = [
    "DARTS_V1",
    "DARTS_V2",
    "PC_DARTS_cifar",
    "PDARTS",
    "DrNAS_cifar10",
    "GDAS_V1",
    "NASNet",
    "AmoebaNet",
    "MEHA",
]


def test_the_names_and_that_no_two_cells_are_one():
    assert sorted(published_names()) == sorted(NAMES)
    assert len({published_cell(name).digest() for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_sources_name_authors_and_year(name):
    assert any(str(year) in source(name) for year in range(2017, 2026)) and ":" in source(name)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"NASNet", "AmoebaNet"}))
def test_cells_found_in_the_darts_space_belong_to_it(name):
    load_space("darts").check(published_cell(name))


@pytest.mark.parametrize("name", ["NASNet", "AmoebaNet"])
def test_the_older_cells_are_larger_than_the_darts_space(name):
    with pytest.raises(InputError, match="edge from"):
        load_space("darts").check(published_cell(name))


# the printed forms of two cells, as their papers' programs print them
PRINTED = {
    "DARTS_V1": """Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1),
        ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5],
        reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0),
        ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])""",
    "MEHA": """Genotype(normal=[('sep_conv_3x3', 0), ('dil_conv_5x5', 1), ('skip_connect', 0), ('sep_conv_5x5', 2),
        ('sep_conv_3x3', 3), ('sep_conv_5x5', 1), ('sep_conv_5x5', 3), ('sep_conv_5x5', 2)], normal_concat=range(2, 6),
        reduce=[('max_pool_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_5x5', 2), ('avg_pool_3x3', 1), ('max_pool_3x3', 0),
        ('max_pool_3x3', 3), ('dil_conv_3x3', 0), ('dil_conv_3x3', 4)], reduce_concat=range(2, 6))""",
}


@pytest.mark.parametrize("name", PRINTED)
def test_cells_equal_their_printed_forms(name):
    assert published_cell(name) == Genotype.parse(PRINTED[name]) == load_genotype(PRINTED[name])


def test_unknown_names_get_the_nearest():
    for read in (published_cell, source, load_genotype):
        with pytest.raises(InputError, match="did you mean 'DARTS_V2'"):
            read("DARTS_V3" if read is not load_genotype else "DARTSV2")


@pytest.mark.parametrize("name", released_names())
def test_released_cells_have_a_provenance_and_load_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = provenance(name)
    assert load_genotype(name).digest() == made["digest"] and source(name) == made["source"]
    assert {"command", "seed", "commit", "hardware", "torch", "metrics", "configuration"} <= set(made)
    assert name in cell_names() and made["configuration"]["seed"] == made["seed"]
    load_space(made["configuration"]["space"]).check(load_genotype(name))
    # a folder of that name here is what is meant
    (tmp_path / name).mkdir()
    (tmp_path / name / "genotype.json").write_text(published_cell("PDARTS").to_json(), encoding="utf-8")
    assert load_genotype(name) == published_cell("PDARTS")


def test_there_are_released_cells_and_no_provenance_of_others():
    assert released_names() and not {*released_names()} & {*published_names()}
    with pytest.raises(InputError, match="released"):
        provenance("DARTS_V2")


def test_loading_from_names_texts_files_and_runs(tmp_path):
    genotype = published_cell("PDARTS")
    (tmp_path / "run" / "search").mkdir(parents=True)
    (tmp_path / "run" / "search" / "genotype.json").write_text(genotype.to_json() + "\n", encoding="utf-8")
    (tmp_path / "printed.txt").write_text(f"PDARTS = {genotype.to_printed()}\n", encoding="utf-8")
    places = [
        "PDARTS",
        genotype.to_json(),
        genotype.to_printed(),
        "\n PDARTS = " + genotype.to_printed(),
        tmp_path / "run",
        str(tmp_path / "run" / "search"),
        tmp_path / "run" / "search" / "genotype.json",
        tmp_path / "printed.txt",
    ]
    for place in places:
        assert load_genotype(place) == genotype
    text = "|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"
    assert load_genotype(text).to_nas_bench_201() == text


def test_what_is_no_genotype_is_refused_with_its_place(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text('{"cells": {}}', encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.json: .*version None"):
        load_genotype(broken)
    (tmp_path / "large.json").write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(InputError, match="200,000 characters"):
        load_genotype(tmp_path / "large.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="not UTF-8"):
        load_genotype(tmp_path / "binary")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "missing.json", "a\x00b", "a" * 3000, "", "no such cell"):
        with pytest.raises(InputError):
            load_genotype(place)
    with pytest.raises(InputError):
        load_genotype("x" * 1_000_000)
