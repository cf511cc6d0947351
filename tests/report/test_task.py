"""The report of a task of `solve`: outcome, suspects, certificate, curves, and a command that the parser takes."""

import html
import json
import re
import shlex

import pytest

from nas_moreau.cli import entry as cli
from nas_moreau.errors import InputError
from nas_moreau.problems import tasks
from nas_moreau.problems.tasks import solve_on_data, solve_task
from nas_moreau.report.run import write_report
from nas_moreau.report.task import doubt_about, next_step, outcome
from nas_moreau.runs.history import Stage
from nas_moreau.runs.tables import read_table
from nas_moreau.training.signals import Interrupted

HOSTILE = ("<script>alert(1)</script>", "b & c", "'\"")


def command_on(page: str) -> str:
    return html.unescape(re.search(r"<p class=next>.*?<code>(.*?)</code>", page)[1])


def sections(page: str) -> set[str]:
    return set(re.findall(r'<section id="([a-z-]+)"', page))


@pytest.mark.parametrize(("options", "status"), [({}, "solved"), ({"method": "moreau", "steps": 5}, "out-of-steps")])
def test_a_problem_with_a_known_answer_has_a_page_where_a_folder_is_named(tmp_path, options, status):
    found = solve_task("quadratic", {"n": 2, **options}, tmp_path / "run")
    assert found.status == status and found.to_dict() == json.loads((tmp_path / "run" / "result.json").read_text())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert sections(page) == {"certificate", "curves", "point", "environment", "reproduce", "configuration"}
    assert f">{status}<" in page and "lower_<wbr>residual" not in page and "lower residual" in page
    assert "<svg" in page and ">step<" in page and "http" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    if not options:
        again = solve_task("quadratic", {"n": 2})
        assert again.x == found.x
    with pytest.raises(InputError, match="already holds"):
        solve_task("quadratic", {"n": 2}, tmp_path / "run")


def test_the_curves_of_many_steps_end_with_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "CURVE_POINTS", 3)
    solve_task("quadratic", {"n": 2, "method": "moreau", "steps": 5}, tmp_path / "run")
    assert [row["step"] for row in read_table(tmp_path / "run" / "metrics.csv")] == ["1", "3", "5"]


def test_a_refused_problem_leaves_no_folder(tmp_path):
    with pytest.raises(InputError):
        solve_task("lasso", {"n": 2, "method": "rhg"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_hyper_cleaning_shows_its_suspects_and_hostile_names_stay_text(tmp_path, make_data):
    folder = tmp_path / "run"
    options = {"steps": 2, "device": "cpu"}
    result = solve_on_data("hyper-cleaning", options, folder, data=make_data(40, classes=HOSTILE))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert {"suspects", "curves", "reproduce"} <= sections(page) and "certificate" not in sections(page)
    assert "data:image/png;base64," in page and "<script" not in page and html.escape(HOSTILE[0]) in page
    assert page.count("number ") >= 20 and f"{100 * result['flagged']:.1f} %" in outcome(result)
    again = tmp_path / "again.html"
    assert cli.main(["report", str(folder), "--output", str(again)]) == 0
    assert again.read_text(encoding="utf-8") == page


def test_the_page_of_an_unfinished_task_continues_it(tmp_path, make_data, stop_at, monkeypatch):
    from nas_moreau.problems import learn

    original, folder = learn.run_in, tmp_path / "it's here"
    monkeypatch.setattr(learn, "run_in", lambda job, place, hooks: original(job, place, [stop_at(1)]))
    with pytest.raises(Interrupted):
        solve_on_data("hyper-cleaning", {"steps": 3, "device": "cpu"}, folder, data=make_data(40))
    page = write_report(folder).read_text(encoding="utf-8")
    args = cli.parse_arguments(shlex.split(command_on(page))[1:])
    assert args.resume and args.output == str(folder) and "interrupted" in page


@pytest.mark.parametrize(
    ("config", "result"),
    [
        ({}, {"status": "solved", "method": "automatic", "n": 4}),
        ({}, {"status": "biased", "method": "moreau", "n": 4}),
        ({}, {"status": "diverged", "method": "bome", "n": 4}),
        ({"data": {"name": "folder:my photos"}}, {"method": "moreau", "corrupt": 0.0}),
        ({"data": {"name": "shapes"}}, {"method": "moreau", "corrupt": 0.5}),
        ({"data": {"name": "shapes"}}, {"method": "darts1", "ways": 3, "shots": 2}),
    ],
)
def test_the_next_command_is_one_that_the_parser_takes_and_not_the_same_again(config, result):
    task = "sine" if "status" in result else "few-shot" if "ways" in result else "hyper-cleaning"
    command = next_step(config, {"task": task, **result}).command
    args = cli.parse_arguments(shlex.split(command)[1:])
    assert args.verb == "solve" and args.task == task
    same = (args.method or "automatic") == result["method"] and not args.debias
    assert not same or args.data != config.get("data", {}).get("name")


def test_many_flags_are_doubted_only_where_no_answer_is_known():
    assert doubt_about({"f1": None, "flagged": 0.5}) and not doubt_about({"f1": None, "flagged": 0.1})
    assert doubt_about({"f1": 0.6, "flagged": 0.5}) is None


def test_tasks_are_not_compared_as_runs_are(tmp_path, capsys):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        solve_task("quadratic", {"n": 1}, folder)
    assert cli.main(["report", *map(str, folders)]) == 2 and "solve" in capsys.readouterr().err
    assert Stage(folders[0]).finished
