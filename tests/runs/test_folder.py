"""Run folders: refused when they should be, resumed when they can be."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from nas_moreau.config import load_config
from nas_moreau.errors import InputError
from nas_moreau.runs.folder import RunFolder

CONFIG = {
    "seed": 3,
    "device": "cpu",
    "search": {"epochs": 2, "layers": 5, "betas": [0.5, 0.999]},
    "logging": {"every": 10},
    "output": "here",
}


def changed(**entries):
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    for key, value in entries.items():
        room = config
        *parents, last = key.split("__")
        for parent in parents:
            room = room[parent]
        room[last] = value
    return config


def begin(path, config=CONFIG, stage="search", resume=False):
    return RunFolder.open(path, config, stage, resume)


def test_a_new_folder_tells_what_runs_in_it(tmp_path):
    with begin(tmp_path / "deep" / "run") as run:
        assert not run.resuming and not run.finished and run.path == tmp_path / "deep" / "run"
        run.log("hello")
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == CONFIG
    status = json.loads((run.path / "status.json").read_text())
    assert status["state"] == "running" and status["stage"] == "search" and status["pid"] == os.getpid()
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["threads"] >= 1 and "earlier" not in environment
    assert (run.path / "log.txt").read_text().splitlines()[-1].endswith("Z hello")


def test_an_empty_folder_is_used_and_a_full_one_refused(tmp_path):
    begin(tmp_path / "run").close()
    with pytest.raises(InputError, match="--resume"):
        begin(tmp_path / "run")
    (tmp_path / "other").mkdir()
    begin(tmp_path / "other").close()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(InputError, match=r"cat\.jpg"):
        begin(tmp_path / "photos")
    with pytest.raises(InputError, match=r"config\.yaml"):
        begin(tmp_path / "photos", resume=True)
    assert sorted(p.name for p in (tmp_path / "photos").iterdir()) == [".lock", "cat.jpg"]


def test_resume_without_a_run_starts_from_the_beginning(tmp_path):
    with begin(tmp_path / "run", resume=True) as run:
        assert not run.resuming and not run.finished


def test_a_run_that_died_while_its_folder_was_made_can_be_resumed(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    for point in range(20):
        left = [point]

        def replace(*arguments, left=left, original=os.replace):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                begin(tmp_path / str(point)).close()
            except Killed:
                pass
            else:
                break
        begin(tmp_path / str(point), resume=True).close()
    assert point == 5  # files.json, config.yaml, environment.json, identity.json, status.json


def test_a_signal_while_the_folder_is_made_leaves_it_interrupted(tmp_path, monkeypatch):
    def stopped(self, text):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "log", stopped)
        begin(tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"
    begin(tmp_path, resume=True).close()


def test_resume_knows_whether_the_run_was_finished(tmp_path):
    with begin(tmp_path) as run:
        run.status("interrupted", step=4)
    with begin(tmp_path, resume=True) as run:
        assert run.resuming and not run.finished and run.read_result() is None
        assert len(json.loads((tmp_path / "environment.json").read_text())["earlier"]) == 1
        run.write_result({"b": 1, "a": 0.1})
        run.status("finished")
    with begin(tmp_path, resume=True) as run:
        assert run.finished and run.read_result() == {"a": 0.1, "b": 1}
        assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
    with begin(tmp_path, changed(search__epochs=3), resume=True) as run:
        assert not run.finished  # more epochs were asked for


@pytest.mark.parametrize(
    "entries",
    [
        {"search__epochs": 5},
        {"device": "meta"},
        {"logging__every": 1},
        {"logging__new": 1},
        {"output": "there"},
    ],
)
def test_harmless_changes_are_taken_over_on_resume(tmp_path, entries):
    begin(tmp_path).close()
    begin(tmp_path, changed(**entries), resume=True).close()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == changed(**entries)


@pytest.mark.parametrize(
    "entries, named",
    [
        ({"seed": 4}, r"seed \(was 3, now 4\)"),
        ({"seed": 3.0}, r"seed \(was 3, now 3.0\)"),
        ({"search__epochs": 1}, r"search.epochs \(was 2, now 1\)"),
        ({"search__layers": 6, "seed": 9}, r"search.layers \(was 5, now 6\), seed"),
        ({"search__betas": [0.9, 0.999]}, "search.betas"),
        ({"search__extra": None, "search__lr": 1}, r"search.lr \(was None, now 1\)"),
    ],
)
def test_other_changes_are_refused_by_name(tmp_path, entries, named):
    begin(tmp_path).close()
    with pytest.raises(InputError, match=named):
        begin(tmp_path, changed(**entries), resume=True)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG


def test_a_run_of_a_version_with_fewer_keys_is_not_said_to_have_another_configuration(tmp_path):
    before = load_config().to_dict()
    del before["search"]["guard"]
    RunFolder.open(tmp_path / "run", before, "search").close()
    with pytest.raises(InputError, match="version") as caught:
        RunFolder.open(tmp_path / "run", load_config().to_dict(), "search", resume=True)
    assert "search.guard" in caught.value.cause


def test_another_stage_is_refused(tmp_path):
    begin(tmp_path).close()
    with pytest.raises(InputError, match=r"'search'.*'retrain'"):
        begin(tmp_path, stage="retrain", resume=True)


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.yaml", "a: [1"),
        ("config.yaml", "- 1"),
        ("config.yaml", ""),
        ("status.json", "{"),
        ("status.json", "[]"),
    ],
)
def test_damaged_files_are_an_input_error_and_leave_no_lock(tmp_path, name, text):
    begin(tmp_path).close()
    (tmp_path / name).write_text(text)
    for _ in range(2):  # a lock left behind would change the second message
        with pytest.raises(InputError, match=name):
            begin(tmp_path, resume=True)


def test_a_second_run_in_one_folder_is_refused_with_the_pid(tmp_path):
    with begin(tmp_path), pytest.raises(InputError, match=f"{os.getpid()}"):
        begin(tmp_path, resume=True)
    begin(tmp_path, resume=True).close()


def test_the_lock_of_a_dead_process_is_no_hindrance(tmp_path):
    code = (
        "import os, sys; from nas_moreau.runs.folder import RunFolder; "
        "run = RunFolder.open(sys.argv[1], {'seed': 3}, 'search'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")]).returncode == 9
    assert (tmp_path / "run" / ".lock").read_text().strip().isdigit()
    with begin(tmp_path / "run", {"seed": 3}, resume=True) as run:
        assert run.resuming


def test_outputs_that_cannot_be_written_to_are_an_input_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300), tmp_path / "a\0b"):
        with pytest.raises(InputError, match="--output"):
            begin(path)
    real = os.open

    def refuse(path, flags, *arguments, **keywords):
        if str(path).endswith(".lock"):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        begin(tmp_path / "read-only")


def test_results_are_strict_json_and_sorted(tmp_path):
    with begin(tmp_path) as run:
        run.write_result({"b": [1.5, None], "a": "ü"})
        assert (tmp_path / "result.json").read_text(encoding="utf-8") == (
            '{\n  "a": "ü",\n  "b": [\n    1.5,\n    null\n  ]\n}\n'
        )
        with pytest.raises(ValueError):
            run.write_result({"a": float("nan")})
        assert run.read_result() == {"a": "ü", "b": [1.5, None]}
        with pytest.raises(ValueError, match="paused"):
            run.status("paused")


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "."])
def test_texts_cannot_leave_the_folder(tmp_path, name):
    with begin(tmp_path / "run") as run:
        with pytest.raises(ValueError):
            run.write_text(name, "x")
        run.write_text("sub/note.txt", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
