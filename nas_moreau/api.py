"""The Python front door: runs by a preset's name, and a `Result` that predicts, evaluates, exports and shows itself.

result = nas_moreau.run("smoke", "runs/a", search={"epochs": 3})
result.test_accuracy, result.verdict, result.predict("photo.png")
result = nas_moreau.load_run("runs/a")      # the same object, from its folder
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from html import escape
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas_moreau import pipeline
from nas_moreau.architecture import Genotype, Network, load_genotype
from nas_moreau.config import Config, load_config, make_config
from nas_moreau.data.images import Data
from nas_moreau.data.loading import data_from_arrays
from nas_moreau.data.sources import source_of
from nas_moreau.drawing.cell import draw_genotype
from nas_moreau.errors import InputError
from nas_moreau.export import classifier
from nas_moreau.export.formats import export
from nas_moreau.export.predict import predict, predict_arrays
from nas_moreau.presets import preset_names
from nas_moreau.report import write_report
from nas_moreau.report.format import percent
from nas_moreau.report.verdict import next_step, outcome
from nas_moreau.runs.configuration import run_config
from nas_moreau.runs.folder import new_run_folder
from nas_moreau.runs.history import Run, Stage, read_run
from nas_moreau.search import stage as search_stage
from nas_moreau.search.result import SearchResult
from nas_moreau.training import retrain as retrain_stage
from nas_moreau.training.evaluate import EvaluateResult
from nas_moreau.training.loop import Hook
from nas_moreau.training.retrain import RetrainResult

Settings = Config | str | PathLike[str]
"""A configuration, the name of a preset, or a YAML file."""
Images = Data | str | PathLike[str] | Sequence[Any]
"""A data set, a specification as --data takes it, the path of a folder or an .npz file, or arrays: (x_train, y_train),
with (x_test, y_test) after them."""


class Result:
    """A run: what came out of it, and what can be done with it.

    `run`, `search` and `retrain` return it, `load_run` reads it from the folder. What a run does not have is None.

    Attributes:
        path: The run folder.
    """

    def __init__(self, path: str | PathLike[str]):
        self.path = Path(path)
        self._run: Run = read_run(self.path)
        if self._run.stages[0].name == "module":
            raise InputError(
                f"{self.path} is a search inside a module.", "Call search_module with its arguments and resume=True."
            )

    # --- what came out ---

    @cached_property
    def search(self) -> SearchResult | None:
        """The result of the finished search."""
        stage = self._run.search
        return SearchResult.from_dict(stage.result, stage.space) if stage is not None and stage.finished else None

    @cached_property
    def retrain(self) -> RetrainResult | None:
        """The result of the finished retraining."""
        stage = self._run.retrain
        return RetrainResult.from_dict(stage.result) if stage is not None and stage.finished else None

    @property
    def genotype(self) -> Genotype | None:
        """The cells: those retrained, else those found."""
        return self._run.genotype

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy on the test images after retraining, 0..1."""
        return self._run.test_accuracy

    @property
    def verdict(self) -> str:
        """How good the cell is, how sure that is, and what to do next, in plain words."""
        return f"{outcome(self._run)} {next_step(self._run)}"

    @property
    def metrics(self) -> dict[str, list[float | None]]:
        """Column of metrics.csv -> its numbers by epoch: of the retraining, else of the search."""
        return self._run.stages[-1].metrics

    @property
    def report(self) -> str:
        """Path of the report, one HTML file; written now if it is not there."""
        place = self.path / "report.html"
        return str(place if place.exists() else write_report(self.path))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, as in result.json: of a whole run by stage."""
        if self._run.parent is None:
            return dict(self._run.stages[0].result)
        found: dict[str, Any] = {stage.name: dict(stage.result) for stage in self._run.stages}
        random = [dict(stage.result) for stage in self._run.random]
        return found | {"report": str(self.path / "report.html")} | ({"random": random} if random else {})

    # --- what can be done with it ---

    def network(self) -> Network:
        """Returns the trained network, on the CPU, in evaluation mode.

        Raises:
            InputError: The run has no finished retraining.
        """
        return self._classifier.network

    def predict(self, images: Any) -> list[dict[str, Any]]:
        """Classifies images.

        Args:
            images: Paths of image files or folders, or an array or tensor of images, by the rules of npz files:
                (n, height, width, channels), (n, channels, height, width) or one image without n.

        Returns:
            For each image that can be read `class`, `probability` and `probabilities`, files with `file`.

        Raises:
            InputError: No image can be read, or the run has no finished retraining.
        """
        if isinstance(images, (np.ndarray, torch.Tensor)):
            return predict_arrays(self._classifier, images)
        several = list(images) if isinstance(images, Iterable) and not isinstance(images, (str, PathLike)) else [images]
        paths = [path for path in several if isinstance(path, (str, PathLike))]
        if len(paths) < len(several):
            raise InputError(
                f"A {type(images).__name__} holds neither image files nor an array.",
                "Give paths, a NumPy array or a tensor; from an image of Pillow: numpy.asarray(image.convert('RGB')).",
            )
        found: list[dict[str, Any]] = predict(self._classifier, paths)["images"]
        return found

    def evaluate(self, data: Images | None = None) -> EvaluateResult:
        """Measures the network: a retraining on the test images, a search on its held-out images.

        Args:
            data: Other images than those of the run; needed where it was given arrays.

        Raises:
            InputError: There is nothing to evaluate, or the images do not fit.
        """
        stage = self._run.stages[-1]
        spec, images = _images(data)
        config = run_config(stage.path)
        if spec is not None:
            config = config.model_copy(update={"data": config.data.model_copy(update={"name": spec})})
        return pipeline.evaluate_run(stage.path, config, images)

    def export(self, format: str = "onnx", output: str | PathLike[str] | None = None) -> Path:
        """Writes the trained network as files that other programs load, and returns their folder.

        Args:
            format: "onnx", "torch-export", "python" or "safetensors".
            output: A missing or empty folder; by default export-FORMAT in the run.

        Raises:
            InputError: The format is unknown, or the run has no finished retraining.
        """
        place = Path(output) if output is not None else self._retraining.path / f"export-{format}"
        return Path(export(self._classifier, format, place)["output"])

    @property
    def _retraining(self) -> Stage:
        stage = self._run.retrain
        if stage is None or not stage.finished:
            raise InputError(f"{self.path} has no finished retraining.", str(next_step(self._run)))
        return stage

    @cached_property
    def _classifier(self) -> classifier.Classifier:
        return classifier.from_run(self._retraining.path, run_config(self._retraining.path))

    # --- how it shows itself ---

    def __repr__(self) -> str:
        digest = self.genotype.digest() if self.genotype is not None else None
        return f"<Result {self.path}: cell {digest}, test accuracy {percent(self.test_accuracy)}>"

    def _repr_html_(self) -> str:
        """Returns the verdict and the drawing of the cell, for notebooks."""
        drawn = draw_genotype(self.genotype) if self.genotype is not None else ""
        return f"<div><p><b>{escape(str(self.path))}</b></p><p>{escape(self.verdict)}</p>{drawn}</div>"


def run(
    config: Settings,
    output: str | PathLike[str] | None = None,
    resume: bool = False,
    data: Images | None = None,
    hooks: Sequence[Hook] = (),
    **settings: Any,
) -> Result:
    """Searches, derives, retrains, evaluates and reports, as far as that is not done yet.

    Args:
        config: The configuration: its object, a preset's name or a YAML file.
        output: Becomes the parent of the folders `search` and `retrain`; by default a new one under checkpoints/.
        resume: Continue where an earlier call in this folder stopped.
        data: The images, other than those of the configuration.
        hooks: Called by the training loops of search and retraining.
        settings: Sections and keys that replace those of the configuration: `search={"epochs": 3}`, `seed=1`,
            `against_random=3`.

    Raises:
        InputError: An argument cannot be used; nothing was written.
        NonFinite: A loss or direction became NaN or infinite.
        Interrupted: SIGINT or SIGTERM; the state is saved.

    Example:
        >>> result = run("smoke", data="shapes", search={"epochs": 1, "steps_per_epoch": 2})  # doctest: +SKIP
    """
    complete, images, folder = _begin("run", config, output, resume, data, settings)
    pipeline.run(complete, folder, resume, images, hooks)
    return Result(folder)


def search(
    config: Settings,
    output: str | PathLike[str] | None = None,
    resume: bool = False,
    data: Images | None = None,
    hooks: Sequence[Hook] = (),
    **settings: Any,
) -> Result:
    """Searches and derives a cell; arguments and errors are those of `run`."""
    complete, images, folder = _begin("search", config, output, resume, data, settings)
    search_stage.search(complete, folder, resume, images, hooks)
    return Result(folder)


def retrain(
    config: Settings,
    genotype: Genotype | str | PathLike[str],
    output: str | PathLike[str] | None = None,
    resume: bool = False,
    data: Images | None = None,
    hooks: Sequence[Hook] = (),
    **settings: Any,
) -> Result:
    """Trains the network of a genotype from scratch and measures it on the test images.

    Args:
        config: As in `run`.
        genotype: The cells: a `Genotype`, a name such as DARTS_V2, a file, or its text.
        output: As in `run`.
        resume: As in `run`.
        data: As in `run`.
        hooks: As in `run`.
        settings: As in `run`.

    Raises:
        InputError, NonFinite, Interrupted: As in `run`.
    """
    cells = genotype if isinstance(genotype, Genotype) else load_genotype(fspath(genotype))
    complete, images, folder = _begin("retrain", config, output, resume, data, settings)
    retrain_stage.retrain(complete, cells, folder, resume, images, hooks)
    return Result(folder)


def load_run(path: str | PathLike[str]) -> Result:
    """Returns the run in a folder: of `run`, `search` or `retrain`, finished or not.

    Raises:
        InputError: The folder holds no run, or a damaged one.
    """
    return Result(path)


def _begin(
    verb: str,
    config: Settings,
    output: str | PathLike[str] | None,
    resume: bool,
    data: Images | None,
    settings: Mapping[str, Any],
) -> tuple[Config, Data | None, Path]:
    """Returns the whole configuration, the images if they are given as such, and the run folder."""
    if resume and output is None:
        raise InputError("A run to be resumed needs its folder.", "Give it as output.")
    spec, images = _images(data)
    begun, origin = (config, "config") if isinstance(config, Config) else _named(fspath(config))
    merged = _merged(begun.to_dict(), settings)
    if spec is not None:
        merged["data"]["name"] = spec
    complete = make_config(merged, "the settings")
    folder = new_run_folder(f"{verb}-{origin}-seed{complete.seed}") if output is None else Path(output)
    return complete, images, folder


def _named(name: str) -> tuple[Config, str]:
    """Returns the configuration of a preset or a YAML file, and what its runs are named after."""
    path = Path(name)
    is_file = name not in preset_names() and (path.exists() or path.suffix in (".yaml", ".yml"))
    return (load_config(path=path) if is_file else load_config(name)), path.stem


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested settings, those above replacing those below."""
    found = dict(below)
    for key, value in above.items():
        inside = found.get(key)
        found[key] = _merged(inside, value) if isinstance(inside, Mapping) and isinstance(value, Mapping) else value
    return found


def _images(data: Images | None) -> tuple[str | None, Data | None]:
    """Returns the specification to record, and the images if they are in memory; None for what is not given."""
    if data is None or isinstance(data, str):
        return data, None
    if isinstance(data, PathLike):
        return source_of(data), None
    if isinstance(data, Data):
        return data.name, data
    arrays = list(data) if isinstance(data, Sequence) else []
    if len(arrays) not in (2, 4):
        raise InputError(
            "The images are neither a specification, nor Data, nor a tuple of arrays.",
            "Give 'folder:DIR' or another source, load_data(...), or (x_train, y_train, x_test, y_test).",
        )
    found = data_from_arrays(*arrays)
    return found.name, found
