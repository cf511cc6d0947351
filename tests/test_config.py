"""Configuration: presets, overrides, and every kind of mistake in one sentence."""

import pytest
import yaml

from nas_moreau.config import Config, config_keys, flatten, load_config, make_config
from nas_moreau.config.keys import nearest_keys, section_meanings
from nas_moreau.errors import InputError
from nas_moreau.presets import preset_header, preset_names, preset_text


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_begins_with_its_command_and_holds_only_differences(name):
    config = load_config(name)
    assert make_config(yaml.safe_load(config.to_yaml())) == config
    command, purpose = preset_header(name)
    assert command.startswith("nas-moreau ") and f"--preset {name}" in command
    assert purpose.endswith(".") and len(purpose) < 120
    defaults = flatten(Config().to_dict())
    given = flatten(yaml.safe_load(preset_text(name)))
    assert not [key for key, value in given.items() if value == defaults[key]]


def test_the_shipped_presets_are_these():
    assert {"smoke", "cpu", "cifar10", "meha_paper", "nas_bench_201"} <= set(preset_names())


def test_the_published_settings_stand_in_cifar10():
    values = flatten(load_config("cifar10").to_dict())
    published = {
        "search.channels": 16,
        "search.layers": 8,
        "search.epochs": 50,
        "search.batch_size": 64,
        "search.weights.lr": 0.025,
        "search.weights.lr_min": 0.001,
        "search.weights.weight_decay": 3e-4,
        "search.weights.clip": 5.0,
        "search.alphas.lr": 3e-4,
        "search.alphas.betas": [0.5, 0.999],
        "search.alphas.weight_decay": 1e-3,
        "retrain.channels": 36,
        "retrain.layers": 20,
        "retrain.epochs": 600,
        "retrain.batch_size": 96,
        "retrain.lr": 0.025,
        "retrain.auxiliary_weight": 0.4,
        "retrain.drop_path": 0.2,
        "retrain.augment.cutout": 16,
    }
    assert {key: values[key] for key in published} == published


def test_every_key_and_section_has_a_meaning_a_type_and_its_default():
    keys, sections = config_keys(), section_meanings()
    assert {key: row.default for key, row in keys.items()} == flatten(Config().to_dict())
    assert not [key for key, row in keys.items() if not row.type or not row.meaning.endswith((".", ".)"))]
    assert not [name for name, meaning in sections.items() if not meaning]
    assert {key.rpartition(".")[0] for key in keys} - {""} <= set(sections)


@pytest.mark.parametrize(
    ("key", "type"),
    [
        ("seed", "integer in [0, 9223372036854775808)"),
        ("search.epochs", "integer in [1, 100000]"),
        ("search.steps_per_epoch", "integer >= 1 or null"),
        ("search.weights.lr", "number > 0"),
        ("search.moreau.p", "number in [0, 0.5)"),
        ("search.split.weights", "number in (0, 1)"),
        ("search.guard", "one of off, stop, best"),
        ("search.alphas.betas", "list of 2, each number in [0, 1)"),
        ("logging.trackers", "list, each one of wandb, mlflow"),
        ("performance.tf32", "auto or true or false"),
        ("data.image_size", "integer in [1, 4096] or null"),
    ],
)
def test_types_have_their_bounds(key, type):
    assert config_keys()[key].type == type


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("epochs", ["search.epochs", "retrain.epochs"]),
        ("search.epoch", ["search.epochs"]),
        ("search.moreau.gama", ["search.moreau.gamma"]),
        ("moreau.gamma", ["search.moreau.gamma"]),
        ("quaternion", []),
    ],
)
def test_an_unknown_key_is_matched_by_its_last_part_or_its_spelling(key, meant):
    assert nearest_keys(key, config_keys()) == meant


def test_overrides_are_read_as_yaml_and_win():
    config = load_config("smoke", overrides=["search.epochs=7", "search.weights.clip=null", "data.name=npz:a=b.npz"])
    assert config.search.epochs == 7 and config.search.weights.clip is None and config.data.name == "npz:a=b.npz"
    assert config.search.channels == load_config("smoke").search.channels


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["search.epoch=3"], ["'search.epoch'", "'search.epochs'"]),
        (["serach.epochs=3"], ["'serach'", "'search'"]),
        (["search.epochs=many"], ["search.epochs", "'many'"]),
        (["search.epochs=0"], ["search.epochs", "0"]),
        (["search.weights.lr=.nan"], ["search.weights.lr"]),
        (["search.split.weights=0.9"], ["search.split", "1"]),
        (["seed"], ["'seed'", "="]),
        (["seed.sub=1", "seed=1", "seed.sub=2"], ["seed.sub"]),
        (["search.epochs=0", "retrain.lr=-1"], ["search.epochs", "retrain.lr"]),
    ],
)
def test_mistakes_in_overrides(overrides, named):
    with pytest.raises(InputError) as caught:
        load_config(overrides=overrides)
    assert all(text in str(caught.value) for text in named) and caught.value.cure


FILES = {
    "a list": "- a\n",
    "an open bracket": "a: [1\n",
    "an alias": "a: &x 1\nb: *x\n",
    "a number without digits": "seed: !!int _\n",
    "an impossible truth": "seed: !!bool maybe\n",
    "a list as a key": "? [1]\n: 2\n",
    "a key twice": "a: 1\na: 2\n",
    "a very long number": "seed: " + "1:" * 300 + "1\n",
    "a deep list": "[" * 60000,
    "an unknown section": "searching: {}\n",
    "a call of Python": "seed: !!python/object:os.system 1\n",
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_mistakes_in_files(text, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(path=path)
    assert "c.yaml" in caught.value.cause and caught.value.cure


def test_missing_unreadable_and_unknown(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml"):
        load_config(path=tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"b\.yaml"):
        load_config(path=tmp_path / "b.yaml")
    with pytest.raises(InputError, match=r"'cifar11'.*'cifar10'"):
        load_config("cifar11")
    with pytest.raises(InputError, match="--config"):
        load_config("smoke", path=tmp_path / "b.yaml")


def test_defaults_need_no_file():
    assert load_config() == Config()


def test_a_file_of_thousands_of_unknown_keys_is_described_in_part():
    with pytest.raises(InputError) as error:
        make_config({f"k{i}": 1 for i in range(6000)})
    assert "'k19'" in error.value.cause and "'k20'" not in error.value.cause and "5,980" in error.value.cause
