"""Data hyper-cleaning as a task of `learn`: its measurements, and the lists and the picture at the end."""

from __future__ import annotations

import logging
from typing import Any

import torch

from nas_moreau.bilevel.methods import MethodInfo
from nas_moreau.bilevel.tensors import Tensors
from nas_moreau.data import Data
from nas_moreau.drawing.contact_sheet import contact_sheet
from nas_moreau.problems.hyper_cleaning import TEST, TRAIN, Cleaning, f1_score, hyper_cleaning
from nas_moreau.problems.learn import MEASUREMENTS, LearningTask
from nas_moreau.problems.step_sizes import tuned_step_sizes
from nas_moreau.runs import RunFolder
from nas_moreau.runs.tables import csv_text
from nas_moreau.text import name_text, spreadsheet_text

_log = logging.getLogger(__name__)

SHOWN = 60
"""Suspects on the contact sheet."""
LEGEND = "Below each image: its label; ? the network's prediction; the learned weight (flagged as wrong below 0.5)"


def cleaning_job(config: dict[str, Any], info: MethodInfo, data: Data, device: torch.device) -> LearningTask:
    """Returns the task of a configuration (`task_options.CleaningConfig`).

    Raises:
        InputError: The data or the rate of corruption cannot be used.
    """
    n, seed = config["n"] or TRAIN, config["seed"]
    made = hyper_cleaning(data, config["corrupt"], seed, (n, n, TEST), device=device)
    changed = int(made.corrupted.sum())
    sentence = f"{changed} of {len(made.judged)} training labels were changed for the demonstration (--corrupt)."
    if changed:
        _log.info("%s", sentence)

    def measure(x: Tensors, y: Tensors) -> dict[str, float]:
        flagged = made.weights(x).cpu() < 0.5
        row = {"accuracy": made.accuracy(y), "flagged": float(flagged.double().mean())}
        if config["corrupt"] > 0:
            row["precision"], row["recall"], row["f1"] = f1_score(flagged, made.corrupted)
        return row

    def finish(folder: RunFolder, x: Tensors, y: Tensors) -> dict[str, Any]:
        if changed:
            folder.log(sentence)
        write_lists(folder, made, data, x, y)
        return {
            "n": len(made.judged),
            "corrupt": config["corrupt"],
            "seed": seed,
            "f1": None,
            "precision": None,
            "recall": None,
            "test_images": len(made.test.labels),
            **measure(x, y),
            "suspects": str(folder.path / "suspects.csv"),
            "cleaned": str(folder.path / "cleaned.csv"),
            "contact_sheet": str(folder.path / "suspects.png"),
        }

    steps = config["steps"]
    sizes = tuned_step_sizes("hyper-cleaning", steps, info)
    return LearningTask(
        name="hyper-cleaning",
        method_name=config["method"],
        problem=made.problem,
        x=made.x,
        y=made.y,
        method=info.build(sizes),
        evaluations=info.count(sizes),
        steps=steps,
        every=max(1, steps // MEASUREMENTS),
        measure=measure,
        finish=finish,
    )


def write_lists(folder: RunFolder, made: Cleaning, data: Data, x: Tensors, y: Tensors) -> None:
    """Writes suspects.csv (all judged samples, least weight first), cleaned.csv (those to keep) and suspects.png.

    Labels are those of the data; `judged_as` in suspects.csv is the label that a demonstration gave a sample.
    """
    weights, predicted = made.weights(x).cpu(), made.predicted(y).cpu()
    order = torch.argsort(weights, stable=True)
    names, files = data.classes, data.files

    def label(i: int) -> str:
        return spreadsheet_text(names[i])

    def row(i: int) -> dict[str, Any]:
        index = int(made.judged[i])
        file = name_text(files[index]) if files else ""
        return {"index": index, "file": spreadsheet_text(file), "label": label(int(data.train.labels[index]))}

    suspects = [
        {
            "rank": rank,
            **row(i),
            "judged_as": label(int(made.labels[i])),
            "predicted": label(int(predicted[i])),
            "weight": repr(float(weights[i])),
            "keep": int(weights[i] >= 0.5),
            "corrupted": int(made.corrupted[i]),
        }
        for rank, i in enumerate(order.tolist(), 1)
    ]
    kept = sorted(torch.nonzero(weights >= 0.5).flatten().tolist(), key=lambda i: int(made.judged[i]))
    cleaned = _csv([row(i) for i in kept]) if kept else "index,file,label\n"
    worst = order[:SHOWN]
    captions = [f"{line['judged_as']}\n? {line['predicted']}\n{float(line['weight']):.3f}" for line in suspects[:SHOWN]]
    picture = contact_sheet(data.train.pixels[made.judged[worst]], captions, legend=LEGEND)
    lists = {"suspects.csv": _csv(suspects).encode("utf-8"), "cleaned.csv": cleaned.encode("utf-8")}
    folder.write_files(lists | {"suspects.png": picture})


def _csv(rows: list[dict[str, Any]]) -> str:
    return csv_text([list(rows[0]), *(list(row.values()) for row in rows)])
