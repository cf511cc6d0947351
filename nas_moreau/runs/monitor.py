"""The numbers of a running stage: metrics.csv, alphas.csv and TensorBoard."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nas_moreau.architecture.spaces.alpha_table import AlphaTable
from nas_moreau.errors import InputError
from nas_moreau.runs.atomic import DiskFull, is_full
from nas_moreau.runs.columns import in_order
from nas_moreau.runs.plain_files import CURE
from nas_moreau.runs.tables import EpochTable

_EVENTS = "events.out.tfevents."


class Monitor:
    """Writes the tables and TensorBoard's events of a run folder.

    Args:
        path: The run folder; None in a process that does not write.
        resume_from_epoch: The first epoch that will be done (again); rows from it on are cut off the tables.
        step: The first step that will be logged (again); TensorBoard drops its events from there on.
        tensorboard: Whether to write TensorBoard's events in addition to the tables.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, resume_from_epoch: int = 0, step: int = 0, tensorboard: bool = True
    ):
        self._board: Any = None
        self._metrics = self._alphas = None
        if path is None:
            return
        folder = Path(path)
        self._metrics = EpochTable(folder / "metrics.csv", resume_from_epoch)
        self._alphas = EpochTable(folder / "alphas.csv", resume_from_epoch)
        if resume_from_epoch and self._metrics.columns is None:
            raise InputError(f"{self._metrics.path} is missing, and {resume_from_epoch} epochs are done.", CURE)
        if not tensorboard:
            return
        # imported here: tensorboard takes long to load, and most commands never write events
        from torch.utils.tensorboard import SummaryWriter

        events = folder / "tensorboard"
        # events of a run that was killed before its first checkpoint are purged too, from step 0 on
        purge = step if events.exists() and any(events.iterdir()) else None
        if purge is not None:
            _put_before_now(events)
        self._events, self._former_hook = events, threading.excepthook
        threading.excepthook = self._report_unless_of_board
        with self._writing():
            self._board = SummaryWriter(str(events), purge_step=purge)

    def _report_unless_of_board(self, failure: threading.ExceptHookArgs) -> None:
        """Leaves an error of TensorBoard's thread to the next call of the board, which raises it."""
        if type(failure.thread).__module__.partition(".")[0] != "tensorboard":
            self._former_hook(failure)

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """Turns an error of the board for lack of space into DiskFull."""
        try:
            yield self._board
        except OSError as error:
            if is_full(error) and not isinstance(error, DiskFull):
                raise DiskFull(self._events) from error
            raise

    @property
    def tensorboard(self) -> bool:
        """Whether events are written; without TensorBoard pictures need not be made."""
        return self._board is not None

    def scalars(self, values: Mapping[str, float | int | Tensor], step: int) -> None:
        """Logs numbers at a step to TensorBoard; tensors are fetched from their device with one synchronisation."""
        if self._board is None:
            return
        tensors = {tag: value for tag, value in values.items() if isinstance(value, Tensor)}
        numbers: dict[str, float] = {tag: float(v) for tag, v in values.items() if not isinstance(v, Tensor)}
        if tensors:
            stacked = torch.stack([value.detach().to(torch.float32) for value in tensors.values()])
            numbers.update(zip(tensors, stacked.tolist()))
        with self._writing() as board:
            for tag in values:
                board.add_scalar(tag, numbers[tag], step)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Appends a row to metrics.csv, in the order of `runs.columns`; the first row fixes the columns.

        Call it before the checkpoint of that epoch: on resume rows can be cut off but not restored.
        """
        if self._metrics is None:
            return
        self._metrics.append([in_order(row)])
        self.flush()

    def flush(self) -> None:
        """Flushes TensorBoard's events; call it before a checkpoint, or a kill loses points of steps that are done."""
        if self._board is not None:
            with self._writing() as board:
                board.flush()

    def alphas(self, epoch: int, table: AlphaTable) -> None:
        """Appends the softmax weights of an epoch to alphas.csv, a row for each operation of each edge."""
        if self._alphas is not None:
            self._alphas.append(table.to_rows(epoch))

    def image(self, tag: str, pixels: Any, step: int) -> None:
        """Logs a picture to TensorBoard.

        Args:
            tag: Its name.
            pixels: A uint8 array (height, width, 3), or a PNG as bytes.
            step: The step that it belongs to.
        """
        if self._board is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        if isinstance(pixels, bytes):
            (width, height), colours, data = Image.open(io.BytesIO(pixels)).size, 3, pixels
        else:
            height, width, colours = pixels.shape
            encoded = io.BytesIO()
            # not SummaryWriter.add_image, whose compression takes five times as long for drawings
            Image.fromarray(np.asarray(pixels)).save(encoded, "PNG", compress_level=1)
            data = encoded.getvalue()
        shown = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=data)
        with self._writing() as board:
            board.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=shown)]), step)

    def graph(self, graph: Any) -> None:
        """Logs a network to TensorBoard's GRAPHS page.

        Args:
            graph: TensorBoard's `GraphDef`.
        """
        if self._board is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event

        with self._writing() as board:
            board.file_writer.add_event(Event(graph_def=graph.SerializeToString()))

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Logs a text (Markdown) to TensorBoard."""
        if self._board is not None:
            with self._writing() as board:
                board.add_text(tag, text, step)

    def hparams(
        self,
        values: Mapping[str, Any],
        metrics: Mapping[str, float | None],
        step: int = 0,
        blank: Collection[str] = (),
        first: Collection[str] = (),
    ) -> None:
        """Logs a configuration and final numbers to TensorBoard's HPARAMS page, in the same run as its curves.

        Args:
            values: Name -> number, string or boolean; anything else as its text. Nested keys are joined by dots.
            metrics: Name -> final number, None if there is none.
            step: The step of the final numbers.
            blank: Names in `values` without meaning for this run. The page has the columns of the first run it finds,
                so that runs need the same names to share a table.
            first: Names in `values` whose columns come first.
        """
        if self._board is None:
            return
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from torch.utils.tensorboard.summary import hparams

        simple = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in values.items()}
        numbers = {k: float(v) for k, v in metrics.items() if v is not None}
        # not SummaryWriter.add_hparams, which opens a second run named after the time of day
        columns, _, _ = hparams(simple, dict.fromkeys(metrics, 0.0))
        about = columns.value[0].metadata.plugin_data
        page = HParamsPluginData.FromString(about.content)
        for info in page.experiment.hparam_infos:
            info.differs = info.name in first  # the page sorts by this, then by name
        about.content = page.SerializeToString()
        _, start, end = hparams({k: v for k, v in simple.items() if k not in blank}, numbers)
        with self._writing() as board:
            for summary in (columns, start, end):
                board.file_writer.add_summary(summary)
        self.scalars(numbers, step)

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """Sets which curves share a chart on TensorBoard's CUSTOM SCALARS page.

        Args:
            charts: From `runs.board.board_layout`: category -> title -> ("Multiline", [tag, ...]).
        """
        if self._board is not None:
            with self._writing() as board:
                board.add_custom_scalars(charts)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._board is None:
            return
        try:
            with self._writing() as board:
                board.close()
        finally:
            self._board, threading.excepthook = None, self._former_hook

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with suppress(OSError) if kind is not None else nullcontext():  # the first error is the one to report
            self.close()


def _put_before_now(events: Path) -> None:
    """Renames files of events, if need be, so that one that is opened now comes last, whatever the clock says.

    TensorBoard reads the files in the order of their names, which begin with the second of their creation. A run that
    is resumed in the same second, or after the clock was set back, would be read before the events that it replaces.
    """
    found = sorted(name for name in os.listdir(events) if name.startswith(_EVENTS))
    stamps = [name.split(".")[3] for name in found]
    if not any(stamp.isdigit() and int(stamp) >= int(time.time()) for stamp in stamps):
        return
    for number, (name, stamp) in enumerate(zip(found, stamps)):  # in order: a kill in between keeps the order
        if int(stamp) != number:
            os.rename(events / name, events / f"{_EVENTS}{number:010d}{name.removeprefix(_EVENTS + stamp)}")
