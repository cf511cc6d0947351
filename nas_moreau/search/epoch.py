"""The end of a search epoch: its evaluations, its row of metrics.csv, TensorBoard's curves and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau import distributed
from nas_moreau.architecture import AlphaTable, Genotype, derive
from nas_moreau.architecture.networks.costs import expected_cost
from nas_moreau.data import Part, seed_for
from nas_moreau.drawing.cell import draw_pixels, genotype_files
from nas_moreau.drawing.heat_map import draw_heat_map
from nas_moreau.drawing.operation_style import operations_line
from nas_moreau.runs.board import board_layout, edge_curves
from nas_moreau.runs.columns import EpochEnd, epoch_metrics
from nas_moreau.search.collapse import assess, signs
from nas_moreau.search.hessian import dominant_eigenvalue, loss_of_alphas
from nas_moreau.search.methods import parse_method
from nas_moreau.search.mixture_scores import Score, one_hot, score_mixtures
from nas_moreau.search.supernet_problem import write_back
from nas_moreau.training.evaluate import Evaluation, evaluate_model
from nas_moreau.training.pictures import log_training_images

if TYPE_CHECKING:
    from nas_moreau.search.engine import SearchJob
    from nas_moreau.search.stage import CellSearch

COUNTS = frozenset({"lower_accuracy", "upper_accuracy"})
"""Correct predictions: counted in a step, shares of the batch where they are logged."""


class EpochEvaluation(NamedTuple):
    """What was evaluated and derived at the end of an epoch.

    Attributes:
        table: The softmax weights.
        genotype: The genotype that the space's rule derives from them.
        held_out: The mixture on the held-out split.
        one_hot: The derived operations alone on the held-out split.
    """

    table: AlphaTable
    genotype: Genotype
    held_out: Evaluation
    one_hot: Score


def step_numbers(info: Any) -> dict[str, Tensor]:
    """Returns a step's 0-dim tensors by the names of metrics.csv (accuracies as counts)."""
    named = {"lower_loss": info.f, "upper_objective": info.F}
    for level, stats in (("upper", info.F_aux), ("lower", info.f_aux)):
        if stats is not None:
            named[f"{level}_loss"] = stats.loss
            if hasattr(stats, "correct"):
                named[f"{level}_accuracy"] = stats.correct
    named |= {"f_theta": info.f_theta, **(info.norms or {}), "cosine": info.cosine}
    if "distance" in named and info.c is not None:
        # R_k of the paper's (15) on this step's batches, theta instead of the proximal minimiser
        named["residual"] = info.c * torch.hypot(named["d_x"], named["d_y"])
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def epoch_means(sums: Mapping[str, Tensor], steps: int, batch_size: int) -> dict[str, float]:
    """Returns the means over an epoch's steps, in one wait for the device.

    Args:
        sums: Sums of `step_numbers` over the epoch.
        steps: Number of steps.
        batch_size: Images of a step.
    """
    means = dict(zip(sums, (torch.stack([value.double() for value in sums.values()]) / steps).tolist()))
    return {name: mean / batch_size if name in COUNTS else mean for name, mean in means.items()}


def step_row(job: SearchJob) -> dict[str, Any]:
    """Returns the epoch's number and the means over its steps by column of metrics.csv."""
    means = epoch_means(job.sums, job.steps_of_epoch(), job.setup.config.search.batch_size)
    row: dict[str, Any] = {"epoch": job.counters.epochs, **means}
    if "f_theta" in means:
        row["gap"] = means["lower_loss"] - means["f_theta"]
    if job.c is not None:
        row["c_k"] = float(job.c)
    step = job.own_step
    return row | {"weights_lr": job.schedules.weights_lr(step), "alphas_lr": job.schedules.alphas_lr(step)}


def evaluate_epoch(job: SearchJob, cells: CellSearch) -> EpochEvaluation:
    """Returns the evaluation of the present alphas and weights; raises StopTraining if a signal arrives."""
    setup, part = job.setup, cells.held_out
    # operations that draw (noise): tied to the epoch, so that an evaluation repeated on resume is the same
    torch.manual_seed(seed_for(setup.config.seed, "evaluation", job.counters.epochs))
    table = cells.alpha_table(job.counted)
    genotype = derive(setup.space, table)
    held_out = job.loop.evaluate(job, "held_out", len(part), lambda: evaluate_held_out(job, cells))
    score = job.loop.evaluate(job, "one_hot", len(part), lambda: _evaluate_one_hot(job, part, genotype))
    return EpochEvaluation(table, genotype, held_out, score)


def evaluate_held_out(job: SearchJob, cells: CellSearch) -> Evaluation:
    """Writes alphas and weights into the supernet and returns its evaluation on the held-out split."""
    supernet, config = job.setup.supernet, job.setup.config
    write_back(supernet, job.x, job.y)
    return evaluate_model(
        supernet,
        cells.held_out,
        job.setup.shape[0],
        channels_last=config.performance.channels_last,
        check_stop=job.loop.stop.check,
    )


def _evaluate_one_hot(job: SearchJob, part: Part, genotype: Genotype) -> Score:
    """Returns the score of the derived operations, with the weights that `evaluate_held_out` wrote."""
    supernet, config = job.setup.supernet, job.setup.config
    mixing, last = one_hot(job.setup.space, genotype, supernet.classifier.weight), config.performance.channels_last
    return score_mixtures(supernet, [mixing], part, last, job.loop.stop.check)[0]


def _eigenvalue(job: SearchJob) -> float:
    """Returns the dominant eigenvalue on the architecture split's first batch, with the weights written before."""
    loss = loss_of_alphas(job.setup.supernet, *job.setup.upper.on(None).batch(0))
    return dominant_eigenvalue(loss, job.x)


def metrics_row(job: SearchJob, cells: CellSearch, found: EpochEvaluation) -> dict[str, Any]:
    """Returns the numbers of the epoch by column of metrics.csv, without `wall_seconds`."""
    setup, settings, step = job.setup, job.setup.config.search, job.counters.step
    row = step_row(job) | {"held_out_loss": found.held_out.loss, "held_out_accuracy": found.held_out.accuracy}
    row |= {"one_hot_loss": found.one_hot.loss, "one_hot_accuracy": found.one_hot.accuracy}
    row["discretisation_gap"] = found.held_out.accuracy - found.one_hot.accuracy
    for kind, shares in setup.costs.items():
        row[f"expected_{kind}"] = expected_cost(setup.supernet.operation_logits(job.x), shares).item()
    row |= signs(setup.space, found.table, found.genotype)
    if settings.eigenvalue:
        size = settings.batch_size
        row["hessian_eigenvalue"] = job.loop.evaluate(job, "eigenvalue", size, lambda: _eigenvalue(job))
    end = EpochEnd(job.counters.epochs, step, setup.space, found.table, found.genotype, dict(row))
    return row | distributed.run_on_rank0(lambda: epoch_metrics(end))


def log_epoch(job: SearchJob, cells: CellSearch, found: EpochEvaluation, row: dict[str, Any]) -> None:
    """Logs the epoch to TensorBoard: the page's layout once, curves, and what `draw_epoch` shows."""
    monitor, curves = job.loop.monitor, job.setup.config.logging.edge_weights
    if row["epoch"] == 0:
        learned = curves and parse_method(job.setup.config.search.method).learns_alphas
        monitor.layout(board_layout(row, found.table if learned else None))
    job.loop.log_epoch(job, row)
    if curves:
        job.loop.log(job, edge_curves(found.table))
    if monitor.tensorboard and found.genotype.digest() != cells.drawn[0]:
        cells.drawn = found.genotype.digest(), job.counters.step
    draw_epoch(job, cells, found.table, found.genotype)


def draw_epoch(job: SearchJob, cells: CellSearch, table: AlphaTable, genotype: Genotype) -> None:
    """Shows the softmax weights as heat maps, the cell if it was another one, and once the training images."""
    monitor, step = job.loop.monitor, job.counters.step
    if not monitor.tensorboard:
        return
    if step == min(job.epoch_steps, job.total_steps) and job.description is not None:
        log_training_images(monitor, job.setup.lower, job.description["classes"], step)
    for name, rows in table.cells.items():
        monitor.image(f"softmax_weights/{name}", draw_heat_map(rows, genotype.cells[name].edges), step)
    if cells.drawn[1] == step:
        monitor.image("cell", draw_pixels(genotype, table, scale=1.0), step)


def draw_derived(job: SearchJob, cells: CellSearch, table: AlphaTable, genotype: Genotype) -> None:
    """Shows the cell that the search ends with after those of its epochs, if it is another one than the last."""
    monitor = job.loop.monitor
    if monitor.tensorboard and genotype.digest() != cells.drawn[0]:
        monitor.image("cell", draw_pixels(genotype, table, scale=1.0), job.counters.step + 1)


def write_epoch(job: SearchJob, found: EpochEvaluation, row: dict[str, Any]) -> None:
    """Writes the epoch's rows of alphas.csv and metrics.csv, and the genotype's files."""
    loop = job.loop
    loop.monitor.alphas(row["epoch"], found.table)
    loop.monitor.epoch(row | {"wall_seconds": job.counters.seconds})
    loop.folder.write_files(genotype_files(found.genotype, found.table))


def print_epoch(job: SearchJob, found: EpochEvaluation, row: dict[str, Any]) -> None:
    """Shows the epoch's numbers and its cell on the terminal."""
    progress, epochs = job.loop.progress, job.setup.config.search.all_epochs
    margins = [row[f"margin_{cell}"] for cell in job.setup.space.cells]
    job.latest = {
        "held-out_accuracy": f"{100 * found.held_out.accuracy:.2f} %",
        "idle_edges": f"{100 * assess(found.genotype).idle_share:.0f} %",
        "margin": f"{sum(margins) / len(margins):.3f}",
    }
    losses = "".join(
        f"  {name} {row[key]:.3f}"
        for name, key in (("architecture loss", "upper_loss"), ("weights loss", "lower_loss"))
        if key in row
    )
    numbers = "".join(f"  {name.replace('_', ' ')} {text}" for name, text in job.latest.items())
    progress.cell(operations_line(found.genotype))
    progress.line(f"epoch {row['epoch'] + 1}/{epochs}{losses}{numbers}")
    progress.line(f"  cell {found.genotype.digest()}  {operations_line(found.genotype)}")
