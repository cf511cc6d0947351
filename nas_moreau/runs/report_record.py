"""The part of the report for the record: cost, how to make it again, environment, configuration."""

from __future__ import annotations

from html import escape
from typing import Any

import yaml  # type: ignore[import-untyped]

from nas_moreau.runs.report_data import Run, Stage
from nas_moreau.runs.report_page import definition_list, section, table
from nas_moreau.runs.report_words import duration, memory


def record_sections(run: Run) -> list[str]:
    """Returns the sections on cost, reproduction, environment and configuration."""
    source = run.parent if run.parent is not None and run.parent.config else run.stages[0]
    return [_cost(run), _reproduce(run, source), _environment(source), _configuration(run, source)]


def _cost(run: Run) -> str:
    rows, total = [], 0.0
    for stage in run.stages:
        seconds = stage.number("wall_seconds")
        seconds = stage.last("wall_seconds") if seconds is None else seconds
        total += seconds or 0.0
        epochs, steps, peak = (
            len(stage.metrics.get("epoch", [])),
            stage.number("steps"),
            stage.number("peak_memory_bytes"),
        )
        rows.append([
            stage.name if stage.finished else f"{stage.name} (not finished)",
            duration(seconds) if seconds is not None else "–",
            f"{epochs}",
            f"{steps:,.0f}" if steps is not None else "–",
            memory(peak) if peak is not None else "–",
        ])  # fmt: skip
    if len(rows) > 1:
        rows.append(["together", duration(total), "", "", ""])
    return section(
        "What it cost",
        "<p>The times hold everything that a stage does: steps, evaluations on held-out or test images, checkpoints. "
        "No cells were trained for comparison within this run.</p>"
        + table(["stage", "wall-clock time", "epochs", "steps", "peak memory"], rows, numbers=(1, 2, 3, 4)),
    )


def _reproduce(run: Run, source: Stage) -> str:
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


def _configuration(run: Run, source: Stage) -> str:
    if not source.config:
        return ""
    text = yaml.safe_dump(source.config, sort_keys=False, allow_unicode=True)
    return section(
        "Configuration", f"<details><summary>config.yaml</summary><pre><code>{escape(text)}</code></pre></details>"
    )
