"""A command that a comparison runs shows its own progress: until it does, and after it, the comparison shows a sign."""

from nas_moreau.compare import child_runs
from nas_moreau.runs.heartbeat import on_top
from nas_moreau.training.signals import StopRequest


class Shown:
    def __init__(self):
        self.paused, self.changes = False, []

    def beat(self):
        pass

    def pause(self, paused):
        if paused is not self.paused:
            self.changes.append(paused)
        self.paused = paused


def test_the_sign_of_a_comparison_stops_while_its_command_shows_progress(tmp_path, monkeypatch):
    command = child_runs.Command("one", ["show", "DARTS_V2"], tmp_path / "one.log")
    seen = {}
    for starting in (0.0, 3600.0):
        monkeypatch.setattr(child_runs, "STARTING", starting)
        shown = Shown()
        with on_top(shown), StopRequest() as stop:
            assert child_runs.run_all([iter([command])], 1, stop, str(tmp_path)) == []
        seen[starting] = shown.changes
    assert seen == {0.0: [True, False], 3600.0: []}
