"""What `watch` hands to TensorBoard."""

from __future__ import annotations

import socket
import subprocess

from nas_moreau.cli import entry as cli
from nas_moreau.cli.watch import free_port, gather


def test_several_runs_stand_under_their_own_names(tmp_path):
    for name in ("a, b:c/seed0/search", "d/seed0"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "events").write_text(name)
    runs = [tmp_path / "runs" / name for name in ("a, b:c/seed0", "a, b:c/seed0/search", "d/seed0", "d/../d/seed0")]
    (tmp_path / "links").mkdir()
    place = gather(runs, tmp_path / "links")
    assert (place / "a, b:c" / "seed0" / "search" / "events").read_text() == "a, b:c/seed0/search"
    assert (place / "d" / "seed0" / "events").read_text() == "d/seed0"
    assert sorted(path.name for path in place.iterdir()) == ["a, b:c", "d"]
    assert not (tmp_path / "runs" / "a, b:c" / "seed0" / "search" / "search").exists()  # nothing is written into a run


def test_a_comparison_is_shown_too(tmp_path, monkeypatch):
    (tmp_path / "cmp" / "searches").mkdir(parents=True)
    (tmp_path / "cmp" / "status.json").write_text('{"stage": "compare", "state": "running"}', encoding="utf-8")
    served = []
    monkeypatch.setattr(subprocess, "Popen", lambda command: served.append(command) or Ended())
    assert cli.main(["watch", str(tmp_path / "cmp"), "--port", "0"]) == 0
    assert f"--logdir={tmp_path / 'cmp'}" in served[0]


def test_a_port_in_use_is_refused_before_an_address_is_printed(tmp_path, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "status.json").write_text('{"stage": "search", "state": "running"}', encoding="utf-8")
        assert cli.main(["watch", str(tmp_path / "run"), "--port", str(taken)]) == 2
        err = capsys.readouterr().err
        assert str(taken) in err and "http" not in err and free_port(0) not in (0, taken)


class Ended:
    """A process that has ended well."""

    def wait(self):
        return 0
