"""The doctor: what it finds, what it advises, and that it notices problems."""

import json
from types import SimpleNamespace

import pytest

from nas_moreau.cli import main
from nas_moreau.diagnostics import doctor


def by_name(result):
    return {row["what"]: row for row in result["findings"]}


@pytest.fixture(autouse=True)
def no_compiling(monkeypatch, tmp_path):
    monkeypatch.setenv("NAS_MOREAU_CACHE", str(tmp_path / "cache"))


def test_a_machine_that_runs_these_tests_is_usable(tmp_path, capsys):
    (tmp_path / "data" / "cifar-10-batches-py").mkdir(parents=True)
    words = ["doctor", "--json", "--data-dir", str(tmp_path / "data"), "--output", str(tmp_path / "new" / "runs")]
    code = main(words)
    result = json.loads(capsys.readouterr().out)
    assert code == 0 and result["usable"]
    rows = by_name(result)
    assert {"python", "torch", "processor", "accelerator", "memory", "disk", "data", "native kernels"} <= set(rows)
    assert "cifar10" in rows["data"]["found"] and str(tmp_path) in rows["disk"]["found"]
    assert rows["self-test: solver"]["state"] == rows["self-test: supernet"]["state"] == "ok"
    assert not (tmp_path / "new").exists()
    assert all(row["cure"] for row in result["findings"] if row["state"] != "ok")


def test_a_problem_exits_with_1_and_names_its_fix(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "REQUIRED", ("torch", "no-such-package"))
    monkeypatch.setattr(doctor, "compare_paths", lambda: 1 / 0)
    code = main(["doctor", "--output", str(tmp_path)])
    out = capsys.readouterr().out
    assert code == 1 and "not usable" in out
    assert "pip install no-such-package" in out and "ZeroDivisionError" in out


def test_each_finding_has_its_fix(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert doctor.check_disk(tmp_path / "file" / "runs").state == "problem"
    full = SimpleNamespace(free=10**8)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: full)
    row = doctor.check_disk(tmp_path)
    assert row.state == "note" and row.cure
    monkeypatch.setattr(doctor, "LITTLE_MEMORY", 1 << 60)
    assert doctor.check_memory().state == "note"
    row = doctor.check_data(tmp_path)
    assert "shapes" in row.found and "--download" in row.cure
    monkeypatch.setattr(doctor.build, "find_compiler", lambda: None)
    assert "C++ compiler" in doctor.check_kernels().cure
    monkeypatch.setenv("NAS_MOREAU_NATIVE", "0")
    assert doctor.check_kernels().state == "note"
    monkeypatch.setattr(doctor, "OPTIONAL", {"extra": ("no_such_module_here",)})
    assert any("nas_moreau[extra]" in row.cure for row in doctor.check_packages())


def test_a_solver_with_wrong_answers_is_noticed(monkeypatch):
    monkeypatch.setattr(doctor, "solve", lambda *args, **options: SimpleNamespace(x=[0.9]))
    finding = doctor.self_test("solver", doctor.solve_by_hand)
    assert finding.state == "problem" and "0.900" in finding.found


def test_paths_that_disagree_are_noticed(monkeypatch):
    monkeypatch.setattr(doctor, "TOLERANCE", -1.0)
    monkeypatch.setattr(doctor.build, "library_path", lambda: SimpleNamespace(exists=lambda: True))
    if not doctor.build.load():
        pytest.skip("no native kernels here")
    assert doctor.self_test("supernet", doctor.compare_paths).state == "problem"


def test_a_broken_accelerator_is_a_problem(monkeypatch):
    environment = doctor.describe_environment() | {"accelerator": "1 x Broken (cuda)"}
    monkeypatch.setattr(doctor, "describe_environment", lambda: environment)

    def fail(name):
        raise RuntimeError("driver too old")

    monkeypatch.setattr(doctor, "pick_device", fail)
    row = doctor.check_devices()[-1]
    assert row.state == "problem" and "driver too old" in row.found and "--device cpu" in row.cure
