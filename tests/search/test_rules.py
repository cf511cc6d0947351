"""Derivation rules by name: one meaning of each name, budgets, what a rule must return."""

import pytest

from nas_moreau.architecture import AlphaTable, Genotype, derive, load_space
from nas_moreau.config import load_config
from nas_moreau.errors import InputError
from nas_moreau.search.rules import RULES, derive_by_rule, register_rule
from nas_moreau.search.stage import search

SHAPE = (3, 3, 8, 8)


@pytest.fixture
def rule():
    """Registers a rule that returns a given genotype under the name `given`."""

    def register(genotype, **how):
        return register_rule("given", **how)(lambda space, weights, trained, config: (genotype, {"note": "given"}))

    yield register
    RULES.pop("given", None)


def logits(space):
    """Edge 0-3 has the weakest operation of the three edges into node 3 of the toy space."""
    rows = [
        [0.0, 0.0, 0.0, 2.0],
        [0.0, 0.0, 2.0, 0.0],
        [0.0, 0.5, 0.0, 0.0],
        [0.0, 0.0, 2.0, 0.0],
        [0.0, 1.0, 0.0, 0.0],
    ]
    return dict.fromkeys(space.cells, rows)


def test_the_default_is_the_rule_of_the_space():
    """It was called argmax, the name that nas_bench_201.yaml had for keeping every edge: here two of three stay."""
    space = load_space("toy")
    found = derive_by_rule(load_config(), space, logits(space))
    assert found.to_dict() == {
        "genotype": derive(space, logits(space)).to_dict(),
        "digest": derive(space, logits(space)).digest(),
        "derived_by": {"rule": "space"},
    }
    assert [edge[1:] for edge in found.genotype.cells["normal"].edges] == [(0, 2), (1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize("name", ["argmax", "Space ", "nothing"])
def test_an_unknown_rule_is_refused_before_a_search(name, tmp_path, tiny_config, tiny_data):
    with pytest.raises(InputError) as caught:
        search(tiny_config(f"derive.rule={name}"), tmp_path / "a", data=tiny_data)
    assert "derive.rule" in caught.value.cause and "space" in caught.value.cure
    assert not (tmp_path / "a").exists()


def test_a_budget_is_recorded_beside_the_rule():
    space = load_space("toy")
    sizes = ["retrain.channels=2", "retrain.layers=2"]
    free = derive_by_rule(load_config(overrides=sizes), space, logits(space))
    config = load_config(overrides=[*sizes, "derive.max_parameters=700"])
    found = derive_by_rule(config, space, logits(space), None, SHAPE).to_dict()
    assert found["derived_by"]["rule"] == "space" and found["derived_by"]["budget"]["parameters"] <= 700
    assert found["before_rule"] == {"genotype": free.genotype.to_dict(), "digest": free.genotype.digest()}


@pytest.mark.parametrize("name", ["perturbation", "given"])
def test_a_rule_without_support_for_a_budget_is_refused_with_one(name, rule, tmp_path, tiny_config, tiny_data):
    rule(None)
    config = tiny_config(f"derive.rule={name}", "derive.max_macs=1000000")
    with pytest.raises(InputError) as caught:
        search(config, tmp_path / "a", data=tiny_data)
    assert name in caught.value.cause and "selection" in caught.value.cure and not (tmp_path / "a").exists()


def test_what_a_rule_returns_is_checked(rule):
    toy, config = load_space("toy"), load_config(overrides=["derive.rule=given"])
    genotype = derive(toy, AlphaTable.uniform(toy))
    rule(genotype)
    assert derive_by_rule(config, toy, logits(toy)).derived_by == {"rule": "given", "note": "given"}
    with pytest.raises(InputError):
        derive_by_rule(config, load_space("darts"), AlphaTable.uniform(load_space("darts")))


def test_a_rule_that_needs_the_supernet_says_so(rule):
    space = load_space("toy")
    rule(Genotype("toy", derive(space, logits(space)).cells), needs_supernet=True)
    with pytest.raises(InputError, match="supernet"):
        derive_by_rule(load_config(overrides=["derive.rule=given"]), space, logits(space))


def test_a_name_is_given_once(rule):
    with pytest.raises(InputError):
        register_rule("selection")
    rule(None)
    with pytest.raises(InputError):
        rule(None)
