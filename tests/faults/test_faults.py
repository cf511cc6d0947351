"""A few of each of what scripts/benchmark_faults.py counts in full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas_moreau.architecture import load_genotype, load_space
from nas_moreau.compare.nas_bench_table import load_table
from nas_moreau.config import load_config
from nas_moreau.data import load_data
from nas_moreau.errors import InputError
from nas_moreau.runs import load_checkpoint

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from faults import damage, kinds, poison  # noqa: E402

linux = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="processes are forked and watched as on Linux"
)


def well(row):
    assert row.well == row.count and row.count > 0, row
    return row


def test_no_damaged_checkpoint_is_loaded(tmp_path):
    well(damage.bits(40, tmp_path))
    well(damage.truncations(10, tmp_path))


@linux
def test_a_full_disk_loses_nothing(tmp_path):
    well(damage.full_disk(8, tmp_path))


@pytest.mark.parametrize("name", ["f, y", "F, value", "theta", "running statistics"])
def test_nan_in_a_search_stops_in_its_step(name, tmp_path):
    assert poison.search_stops(tmp_path / "a", poison.SEARCH_PLACES[name])


@pytest.mark.parametrize("name", ["a gradient", "the moving average"])
def test_nan_in_a_retraining_stops_in_its_step(name, tmp_path):
    assert poison.retrain_stops(tmp_path / "a", poison.RETRAIN_PLACES[name])


@pytest.mark.parametrize("objective", ["F", "f"])
@pytest.mark.parametrize("place", ["value", "x", "y"])
def test_nan_in_solve_stops_in_its_step(objective, place):
    assert poison.solve_stops(objective, place)


READERS = {
    "c.yaml": lambda path: load_config(path=path),
    "s.yaml": load_space,
    "g.json": load_genotype,
    "t.csv": load_table,
    "d.npz": lambda path: load_data(f"npz:{path}"),
    "last.pt": lambda path: load_checkpoint(path.parent),
}
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3),
    max_leaves=10,
)
FILES = st.binary(max_size=300) | st.text(max_size=200).map(str.encode) | PLAIN.map(lambda data: repr(data).encode())


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=FILES)
def test_any_bytes_at_all_are_read_or_refused_in_words(name, data, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    try:
        READERS[name](path)
    except InputError as error:
        assert error.cause.endswith(".") and "\n" not in str(error)


@pytest.mark.parametrize("key", ["seed", "search.weights.lr", "data.name", "search.split", "space"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(value=st.text(max_size=30) | PLAIN.map(repr))
def test_any_override_at_all_is_read_or_refused_in_words(key, value):
    try:
        load_config(overrides=[f"{key}={value}"])
    except InputError as error:
        assert error.cause.endswith(".") and "\n" not in str(error)


@linux
@pytest.mark.slow
def test_kills_signals_and_changed_files(tmp_path):
    """In one process that imports everything once; it forks, so it cannot be this one."""
    words = [
        sys.executable,
        str(SCRIPTS / "benchmark_faults.py"),
        "--quick",
        "--only",
        "save,kill,operations,inputs,signals,mutations",
    ]
    done = subprocess.run(
        [*words, "--folder", str(tmp_path)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n| ") == 1 + 1 + 2 + 6 + 4 + 1 + len(kinds.kinds())
