"""The sections of the report on record: images, cost, how to reproduce the run, environment, configuration."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import yaml

from nas_moreau.drawing.operation_style import shorten
from nas_moreau.report.format import count, duration, memory
from nas_moreau.report.html import code, definition_list, details, paragraph, section, table
from nas_moreau.runs.environment import first_command
from nas_moreau.runs.history import Run, Stage

SHOWN_CLASSES = 40


def record_sections(run: Run) -> list[str]:
    """Returns the sections on images, cost, reproduction, environment and configuration."""
    source = run.source
    return [
        _images(run.stages[-1].data),
        cost_section(run),
        _reproduce(run),
        environment_section(source.environment),
        configuration_section(source.config),
    ]


def environment_section(environment: Mapping[str, Any]) -> str:
    """Returns versions and hardware of environment.json; "" without them."""
    pairs = []
    for key, value in environment.items():
        if key == "earlier":
            pairs.append(("resumed", f"{len(value)} times"))
        elif isinstance(value, dict):
            pairs.append((key, ", ".join(f"{name} {version}" for name, version in value.items())))
        elif value is not None and key != "command":
            pairs.append((key, str(value)))
    return section("environment", "Environment", definition_list(pairs)) if pairs else ""


def command_of(stage: Stage) -> str:
    """Returns the command that began a run, to be copied; "" where none is recorded."""
    command = first_command(stage.environment)
    return paragraph("The command of this run:") + code(command) if command else ""


def configuration_section(config: Mapping[str, Any]) -> str:
    """Returns the configuration as YAML, folded; "" without one."""
    if not config:
        return ""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return section("configuration", "Configuration", details("config.yaml", code(text)))


def _images(data: Mapping[str, Any]) -> str:
    if not data:
        return ""
    height, width = data["image_size"]
    mean, std = (", ".join(f"{value:.4f}" for value in data[key]) for key in ("mean", "std"))
    facts = [
        ("data", data["name"]),
        ("images", f"{sum(data['train']):,} training images, {sum(data['test']):,} test images"),
        ("size", f"{data['channels']} x {height} x {width}"),
        ("normalised by", f"mean {mean}; standard deviation {std}; pixels scaled to 0..1"),
    ]
    counts = list(zip(data["classes"], data["train"], data["test"]))
    rows = [[shorten(name, 60), f"{train:,}", f"{test:,}"] for name, train, test in counts[:SHOWN_CLASSES]]
    left_out = len(counts) - SHOWN_CLASSES
    notes = "".join(f"<li>{escape(note)}</li>" for note in data["notes"])
    return section(
        "images",
        "Images",
        definition_list(facts)
        + (f"<ul>{notes}</ul>" if notes else "")
        + table(["class", "training images", "test images"], rows, numbers=(1, 2))
        + (paragraph(f"{left_out} more classes are left out.") if left_out > 0 else ""),
    )


def cost_section(run: Run) -> str:
    """Returns times, steps and memory of the stages."""
    rows = [
        [
            stage.name if stage.finished else f"{stage.name} (not finished)",
            duration(stage.seconds),
            duration(_evaluation(stage)),
            str(len(stage.metrics.get("epoch", []))),
            count(stage.number("steps")),
            memory(stage.number("peak_memory_bytes")),
        ]
        for stage in run.stages
    ]
    if len(rows) > 1:
        total = sum(stage.seconds or 0.0 for stage in run.stages)
        evaluated = sum(_evaluation(stage) or 0.0 for stage in run.stages)
        rows.append(["total", duration(total), duration(evaluated or None), "", "", ""])
    head = ["stage", "wall-clock time", "of it evaluations", "epochs", "steps", "peak memory"]
    note = (
        "Wall-clock times include everything that a stage does: steps, checkpoints, and evaluations on held-out, "
        "validation or test images, which have a separate column."
    )
    return section("cost", "Cost", paragraph(note) + table(head, rows, numbers=range(1, 6)))


def _evaluation(stage: Stage) -> float | None:
    """Returns the seconds of a finished stage's evaluations."""
    seconds = stage.status.get("evaluation_seconds")
    return float(seconds) if isinstance(seconds, (int, float)) else None


def _reproduce(run: Run) -> str:
    source = run.source
    verb = source.name if source.name in ("search", "run") else "retrain genotype.json"
    begun = command_of(source)
    inside = begun + paragraph("The same from its configuration, which holds every setting:")
    inside += code(f"nas-moreau {verb} --config config.yaml --output again")
    inside += paragraph(
        "On a CPU, the same versions and number of threads give the same bytes of alphas, weights and metrics."
    )
    unfinished = [stage.name for stage in run.stages if not stage.finished]
    if unfinished and begun:
        inside += (
            f"<p>To continue ({escape(', '.join(unfinished))} not finished), repeat the command with "
            "<code>--resume</code>.</p>"
        )
    return section("reproduce", "Reproduce this run", inside)
