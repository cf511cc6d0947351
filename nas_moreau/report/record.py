"""The part of the report for the record: images, cost, how to make it again, environment, configuration."""

from __future__ import annotations

from html import escape
from typing import Any

import yaml

from nas_moreau.drawing.operation_style import shorten
from nas_moreau.report.html import definition_list, section, table
from nas_moreau.report.indicators import duration, memory
from nas_moreau.runs.history import Run, Stage

SHOWN_CLASSES = 40


def record_sections(run: Run) -> list[str]:
    """Returns the sections on images, cost, reproduction, environment and configuration."""
    made = [_reproduce(run), _environment(run.source), _configuration(run.source)]
    return [_images(run.stages[-1]), _cost(run), *made]


def _images(stage: Stage) -> str:
    data = stage.data
    if not data:
        return ""
    height, width = data["image_size"]
    mean, std = (", ".join(f"{value:.4f}" for value in data[key]) for key in ("mean", "std"))
    facts = [
        ("data", data["name"]),
        ("images", f"{sum(data['train']):,} for training, {sum(data['test']):,} for the test"),
        ("size", f"{data['channels']} x {height} x {width}"),
        ("normalised by", f"mean {mean}; standard deviation {std}; pixels scaled to 0..1"),
    ]
    counts = list(zip(data["classes"], data["train"], data["test"]))
    rows = [[shorten(name, 60), f"{train:,}", f"{test:,}"] for name, train, test in counts[:SHOWN_CLASSES]]
    more = f"<p>{len(counts) - SHOWN_CLASSES} more classes are left out.</p>" if len(counts) > SHOWN_CLASSES else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in data["notes"])
    return section(
        "Images",
        definition_list(facts)
        + (f"<ul>{notes}</ul>" if notes else "")
        + table(["class", "training images", "test images"], rows, numbers=(1, 2))
        + more,
    )


def _cost(run: Run) -> str:
    rows, total = [], 0.0
    evaluated = sum(_evaluation(stage) or 0.0 for stage in run.stages)
    for stage in run.stages:
        seconds = stage.seconds
        evaluation = _evaluation(stage)
        total += seconds or 0.0
        epochs, steps, peak = (
            len(stage.metrics.get("epoch", [])),
            stage.number("steps"),
            stage.number("peak_memory_bytes"),
        )
        rows.append([
            stage.name if stage.finished else f"{stage.name} (not finished)",
            duration(seconds) if seconds is not None else "–",
            duration(evaluation) if evaluation is not None else "–",
            f"{epochs}",
            f"{steps:,.0f}" if steps is not None else "–",
            memory(peak) if peak is not None else "–",
        ])  # fmt: skip
    if len(rows) > 1:
        rows.append(["together", duration(total), duration(evaluated) if evaluated else "", "", "", ""])
    head = ["stage", "wall-clock time", "of it evaluations", "epochs", "steps", "peak memory"]
    return section(
        "What it cost",
        "<p>The wall-clock times hold everything that a stage does: steps, checkpoints, and the evaluations on "
        "held-out, validation or test images, which stand beside them once more. No cells were trained for comparison "
        "within this run.</p>" + table(head, rows, numbers=range(1, 6)),
    )


def _evaluation(stage: Stage) -> float | None:
    """Returns the seconds of a finished stage's evaluations."""
    seconds = stage.status.get("evaluation_seconds")
    return float(seconds) if isinstance(seconds, (int, float)) else None


def _reproduce(run: Run) -> str:
    source = run.source
    first: dict[str, Any] = (source.environment.get("earlier") or [source.environment])[0]
    command = str(first.get("command") or "")
    inside = f"<p>The command that began this run:</p><pre><code>{escape(command)}</code></pre>" if command else ""
    verb = source.name if source.name in ("search", "run") else "retrain genotype.json"
    inside += (
        "<p>The same from its configuration, which holds every setting:</p>"
        f"<pre><code>nas-moreau {escape(verb)} --config config.yaml --output again</code></pre>"
        "<p>On a CPU, the same versions and number of threads give the same bytes of alphas, weights and metrics.</p>"
    )
    unfinished = [stage.name for stage in run.stages if not stage.finished]
    if unfinished and command:
        inside += (
            f"<p>To go on with what is not finished ({escape(', '.join(unfinished))}), repeat the command with "
            "<code>--resume</code>.</p>"
        )
    return section("To make it again", inside)


def _environment(source: Stage) -> str:
    found = source.environment
    if not found:
        return ""
    pairs = []
    for key, value in found.items():
        if key == "earlier":
            pairs.append(("resumed", f"{len(value)} times"))
        elif isinstance(value, dict):
            pairs.append((key, ", ".join(f"{name} {version}" for name, version in value.items())))
        elif value is not None and key != "command":
            pairs.append((key, str(value)))
    return section("Environment", definition_list(pairs))


def _configuration(source: Stage) -> str:
    if not source.config:
        return ""
    text = yaml.safe_dump(source.config, sort_keys=False, allow_unicode=True)
    return section(
        "Configuration", f"<details><summary>config.yaml</summary><pre><code>{escape(text)}</code></pre></details>"
    )
