"""The report of a bilevel problem of `solve`: how it ended and how sure that is, curves, suspects, reproduction."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from nas_moreau.report.format import count, duration, memory, number, percent
from nas_moreau.report.html import (
    code,
    command_line,
    definition_list,
    header,
    page,
    paragraph,
    picture,
    section,
    table,
    tiles,
)
from nas_moreau.report.indicators import BAD, GOOD, WATCH
from nas_moreau.report.module import stage_charts
from nas_moreau.report.record import command_of, configuration_section, environment_section
from nas_moreau.report.verdict import NextStep
from nas_moreau.runs.history import Stage
from nas_moreau.runs.tables import read_table

UNLIKELY = 0.3
"""Share of flagged samples above which the network is a likelier cause than the labels."""
SHOWN = 20
"""Suspects, and entries of x and y, that are listed."""
STATUSES = {
    "solved": (GOOD, "Solved: the certificate below holds."),
    "biased": (WATCH, "The method has settled, but not at a point that could be certified as a solution."),
    "out-of-steps": (WATCH, "All steps were done before the tolerance was met."),
    "stopped": (WATCH, "It was stopped."),
    "not-minimal": (BAD, "The point does not solve the problem: one of the levels is at a maximum or saddle."),
    "diverged": (BAD, "It diverged; the last finite point is given."),
    "refused": (BAD, "The method does not apply to this problem."),
}
"""Status of a solution -> level, and what it means."""
CERTIFICATE = {
    "lower_residual": "what is left of the lower level's optimality condition, relative to |y|",
    "lower_curvature": "smallest curvature of the lower level over the largest; negative at a maximum or saddle",
    "hypergradient": "decrease of F(x, y*(x)) that a further step predicts, of the order of the relative error of x",
    "bias": "estimated relative error of x by the penalty",
    "upper_curvature": "smallest curvature of F(x, y*(x)) over the largest",
}
"""Number of a certificate -> what it is."""


def render_task(stage: Stage) -> str:
    """Returns the HTML of the report of a bilevel problem in a run folder."""
    config, result = stage.config, stage.result
    name = stage.path.resolve().name or "task"
    facts = [str(config.get("task")), f"method {config.get('method')}"]
    facts += [f"data {config['data']['name']}"] if "data" in config else [f"n {result.get('n')}"]
    facts.append(f"seed {config.get('seed')}")
    marks = [(f"solve: {stage.state}", GOOD if stage.state == "finished" else WATCH)]
    if (status := result.get("status")) in STATUSES:
        marks.append((str(status), STATUSES[status][0]))
    todo = next_step(config, result) if stage.finished else _continued(stage)
    shown = (command_line(*todo) if todo is not None else "") + _tiles(result)
    summary = outcome(result) if stage.finished else "The task is not finished."
    parts = [header("report", name, facts, summary, shown, marks), _suspects(stage), _certificate(result)]
    if stage.metrics:
        parts.append(section("curves", "How it went", stage_charts(stage, "", "step")))
    parts += [_point(result), _reproduce(stage), environment_section(stage.environment)]
    return page(f"{name} · report", [*parts, configuration_section(config)])


def outcome(result: Mapping[str, Any]) -> str:
    """Returns what came out, in a few sentences: how good, how sure.

    Args:
        result: Of a finished task.
    """
    if "status" in result:
        found = [STATUSES[result["status"]][1]]
        if result["error"] is not None:
            found.append(f"The relative error of x against the exact solution is {result['error']:.2g}.")
        return " ".join(found)
    accuracy = percent(result["accuracy"])
    if "test_tasks" in result:
        return (
            f"With the learned backbone {accuracy} of the query images are classified correctly (± "
            f"{percent(result['interval'])}, 95 % interval over {result['test_tasks']} tasks of {result['ways']} "
            f"classes that it was not trained on, with {result['shots']} of their images to learn from; by chance "
            f"{percent(1 / result['ways'], 0)})."
        )
    found = [
        f"{percent(result['flagged'], 1)} of {result['n']:,} training labels are flagged as wrong.",
        f"A network trained on the weighted samples reaches {accuracy} on {result['test_images']:,} test images.",
    ]
    if result["f1"] is not None:
        parts = f"{percent(result['recall'], 1)} of them are found, and {percent(result['precision'], 1)}"
        found.insert(1, f"Labels were changed for the demonstration: {parts} of those flagged were changed.")
    elif (doubt := doubt_about(result)) is not None:
        found.insert(1, f"{doubt[:1].upper()}{doubt[1:]}.")
    return " ".join(found)


def doubt_about(result: Mapping[str, Any]) -> str | None:
    """Returns why the flags of a hyper-cleaning of own labels are not to be trusted; None where they may be."""
    if result.get("f1") is None and result.get("flagged", 0.0) > UNLIKELY:
        return "a share this high means that the network does not learn these images: use the order alone"
    return None


def next_step(config: Mapping[str, Any], result: Mapping[str, Any]) -> NextStep:
    """Returns what to do next with a finished task.

    Args:
        config: Of its run folder; {} where there is none.
        result: Its result.
    """
    task, method = result["task"], result["method"]
    command = f"nas-moreau solve {task}"
    if "status" not in result:
        if result.get("corrupt"):
            return NextStep("Judge the labels of your own images", f"{command} --data folder:DIR")
        other = "darts1" if method != "darts1" else "moreau"
        command += f" --data {shlex.quote(str(config['data']['name']))}" if "data" in config else ""
        command += f" --ways {result['ways']} --shots {result['shots']}" if "ways" in result else ""
        reason = "Compare with another method, at as many gradient evaluations"
        return NextStep(reason, f"{command} --method {other}")
    command += f" --n {result['n']}"
    if method == "automatic":
        return NextStep("Compare with a method of `list methods`", f"{command} --method moreau")
    if result["status"] == "biased" and method.startswith("moreau"):
        return NextStep("Remove the bias of the penalty", f"{command} --method {method} --debias")
    return NextStep("Let the solver choose by itself, with a certificate", command)


def _continued(stage: Stage) -> NextStep:
    task, path = stage.config.get("task"), shlex.quote(str(stage.path))
    return NextStep("Continue it", f"nas-moreau solve {task} --output {path} --resume")


def _tiles(result: Mapping[str, Any]) -> str:
    numbers: list[tuple[str, Callable[[float | None], str], str, str]] = [
        ("accuracy", percent, "accuracy", "classes not trained on" if "ways" in result else "test images"),
        ("f1", percent, "F1", "of finding the changed labels"),
        ("flagged", percent, "flagged as wrong", "of the training labels"),
        ("error", lambda value: number(value, ".2g"), "error of x", "relative, against the exact solution"),
        ("F", lambda value: number(value, ".6g"), "upper objective F", "at the end"),
        ("steps", count, "steps", ""),
        ("evaluations", count, "evaluations", "of F and f, and of second derivatives"),
        ("seconds", duration, "time", "of the method"),
        ("peak_memory_bytes", memory, "peak memory", "of the process"),
    ]
    shown = [(form(result[key]), title, note) for key, form, title, note in numbers if result.get(key) is not None]
    return tiles(shown) if shown else ""


def _suspects(stage: Stage) -> str:
    """Returns the contact sheet and the list of the least trusted samples of a hyper-cleaning; "" without any."""
    rows = read_table(stage.path / "suspects.csv")[:SHOWN]
    if not rows:
        return ""
    head = ["rank", "sample", "label", "network's prediction", "weight", "keep"]
    lines = [
        [
            row["rank"],
            row["file"] or f"number {row['index']}",
            row["judged_as"],
            row["predicted"],
            f"{float(row['weight']):.3f}",
            "yes" if row["keep"] == "1" else "no",
        ]
        for row in rows
    ]
    note = (
        "The least trusted training samples first. The weight of a sample is learned so that a network trained on the "
        "weighted samples fits other ones; below 0.5 its label is flagged as wrong. suspects.csv lists all samples, "
        "cleaned.csv those to keep."
    )
    sheet = picture(stage.path / "suspects.png", "the least trusted training samples")
    return section("suspects", "Suspects", paragraph(note) + sheet + table(head, lines, numbers=(0, 4)))


def _certificate(result: Mapping[str, Any]) -> str:
    found = result.get("certificate") or {}
    known = [(name, found[name], meaning) for name, meaning in CERTIFICATE.items() if found.get(name) is not None]
    if not known:
        return ""
    rows = [[name.replace("_", " "), f"{value:.1e}", meaning] for name, value, meaning in known]
    shown = table(["number", "value", "meaning"], rows, numbers=(1,))
    return section("certificate", "Certificate", paragraph(str(result["message"])) + shown)


def _point(result: Mapping[str, Any]) -> str:
    """Returns the entries of x and y of a problem with a known answer; "" for networks."""
    if not isinstance(result.get("x"), list):
        return ""
    lines = []
    for name in ("x", "y"):
        values = result[name]
        more = f" ... ({len(values):,} entries; result.json has all)" if len(values) > SHOWN else ""
        lines.append((name, ", ".join(f"{value:.6g}" for value in values[:SHOWN]) + more))
    return section("point", "The point", definition_list(lines))


def _reproduce(stage: Stage) -> str:
    again = f"nas-moreau solve {stage.config.get('task')} --output again"
    begun = command_of(stage) or (paragraph("The same task with its default options:") + code(again))
    text = "On a CPU, the same versions and number of threads give the same bytes of the result but for its times."
    return section("reproduce", "Reproduce this run", begun + paragraph(text))
