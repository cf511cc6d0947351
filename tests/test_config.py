"""Configuration: presets, overrides, and every kind of mistake in one sentence."""

import pytest
import yaml

from nas_moreau.config import Config, flatten, load_config, make_config
from nas_moreau.errors import InputError
from nas_moreau.presets.by_name import preset_names, preset_text


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_and_begin_with_their_command(name):
    config = load_config(name)
    assert make_config(yaml.safe_load(config.to_yaml())) == config
    first = preset_text(name).splitlines()[0]
    assert first.startswith("# nas-moreau ") and f"--preset {name}" in first


def test_the_shipped_presets_are_these():
    assert {"smoke", "cpu", "cifar10", "meha_paper", "nas_bench_201"} <= set(preset_names())


def test_the_published_settings_stand_in_cifar10():
    values = dict(flatten(load_config("cifar10").to_dict()))
    for key, value in {
        "search.channels": 16, "search.layers": 8, "search.epochs": 50, "search.batch_size": 64,
        "search.weights.lr": 0.025, "search.weights.lr_min": 0.001, "search.weights.weight_decay": 3e-4,
        "search.weights.clip": 5.0, "search.alphas.lr": 3e-4, "search.alphas.weight_decay": 1e-3,
        "retrain.channels": 36, "retrain.layers": 20, "retrain.epochs": 600, "retrain.batch_size": 96,
        "retrain.lr": 0.025, "retrain.auxiliary_weight": 0.4, "retrain.drop_path": 0.2, "retrain.augment.cutout": 16,
    }.items():  # fmt: skip
        assert values[key] == value, key


def test_overrides_are_read_as_yaml_and_win():
    config = load_config("smoke", overrides=["search.epochs=7", "search.weights.clip=null", "data.name=npz:a=b.npz"])
    assert config.search.epochs == 7 and config.search.weights.clip is None and config.data.name == "npz:a=b.npz"
    assert config.search.channels == load_config("smoke").search.channels


@pytest.mark.parametrize("overrides, match", [
    (["search.epoch=3"], "'search.epoch' is no key. Did you mean 'epochs'"),
    (["serach.epochs=3"], "Did you mean 'search'"),
    (["search.epochs=many"], "'search.epochs' is 'many'"),
    (["search.epochs=0"], "'search.epochs' is 0"),
    (["search.weights.lr=.nan"], "search.weights.lr"),
    (["search.split.weights=0.9"], "must add up to 1"),
    (["seed"], "not of the form"),
    (["seed.sub=1", "seed=1", "seed.sub=2"], "single value"),
    (["search.epochs=0", "retrain.lr=-1"], "(?s)search.epochs.*retrain.lr"),
])  # fmt: skip
def test_mistakes_in_overrides(overrides, match):
    with pytest.raises(InputError, match=match):
        load_config(overrides=overrides)


@pytest.mark.parametrize("text, match", [
    ("- a\n", "does not hold keys"), ("a: [1\n", "no valid YAML"), ("a: &x 1\nb: *x\n", "uses a YAML alias"),
    ("seed: !!int _\n", "no valid YAML"), ("seed: !!bool maybe\n", "no valid YAML"), ("? [1]\n: 2\n", "no valid YAML"),
    ("a: 1\na: 2\n", "twice"),
    ("seed: " + "1:" * 300 + "1\n", "a number of 601 characters"), ("[" * 60000, "nested more than 8 deep"),
    ("searching: {}\n", "is no key"), ("seed: !!python/object:os.system 1\n", "no valid YAML"),
])  # fmt: skip
def test_mistakes_in_files(text, match, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=match):
        load_config(path=path)


def test_missing_unreadable_and_unknown(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_config(path=tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(path=tmp_path / "b.yaml")
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        load_config("cifar11")
    with pytest.raises(InputError, match="one of"):
        load_config("smoke", path=tmp_path / "b.yaml")


def test_defaults_need_no_file():
    assert load_config() == Config()
