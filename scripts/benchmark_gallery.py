"""The gallery of problems with answers: `solve` with nothing given, a dense implicit baseline, and tuned rivals.

    python scripts/benchmark_gallery.py                     # solve and the baseline, a minute or two
    python scripts/benchmark_gallery.py --rivals            # the rivals too, each with the best of three step sizes
    python scripts/benchmark_gallery.py --only sine-5,lasso-two --markdown table.md

The baseline is what a reader of a textbook writes in torch.func: Newton's method below with a dense Hessian, the
implicit gradient by a dense solve, L-BFGS on x. Rivals get step sizes from curvatures (`nas_moreau.problems`), and x's
is multiplied by each of `FACTORS`; the best error of the three counts, chosen with the answer known.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gallery.problems import GALLERY, Posed

from nas_moreau.bilevel import solve
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.problems.step_sizes import curvature_step_sizes
from nas_moreau.problems.synthetic import Case

RIVALS = ("implicit-cg", "bome", "f2sa")
RIVAL_STEPS = 200
FACTORS = (0.1, 1.0, 10.0)
BASELINE_SECONDS = 30
"""Processor seconds after which the baseline counts as failed."""


@dataclass(frozen=True)
class Row:
    """An outcome: error of x, status, evaluations (None where they are not counted), processor seconds."""

    error: float
    status: str
    evaluations: int | None
    seconds: float


def timed(run: Callable[[], tuple[float, str, int | None]]) -> Row:
    """Returns the outcome of a run; one that raises counts as failed."""
    begin = time.process_time()
    try:
        error, status, evaluations = run()
    except (RuntimeError, ValueError, ArithmeticError):
        error, status, evaluations = math.inf, "failed", None
    return Row(error, status, evaluations, time.process_time() - begin)


def ours(posed: Posed) -> Row:
    """Solves with nothing given."""

    def run() -> tuple[float, str, int | None]:
        found = solve(posed.problem, posed.x, posed.y, batches=posed.batches)
        return posed.error(found.x), found.status, found.evaluations

    return timed(run)


def baseline(posed: Posed, steps: int = 100) -> Row:
    """Solves by dense implicit gradients and L-BFGS."""
    shapes_x, shapes_y = [t.shape for t in posed.x], [t.shape for t in posed.y]

    def lists(vector: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
        parts = vector.split([math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes)]

    def F(x: Tensor, y: Tensor) -> Tensor:
        return posed.problem.F(lists(x, shapes_x), lists(y, shapes_y), None)

    def f(x: Tensor, y: Tensor) -> Tensor:
        return posed.problem.f(lists(x, shapes_x), lists(y, shapes_y), None)

    f_y = torch.func.grad(f, 1)
    f_yy, f_yx = torch.func.jacrev(f_y, 1), torch.func.jacrev(f_y, 0)

    def lower(x: Tensor, y: Tensor) -> Tensor:
        for _ in range(100):
            move, length = torch.linalg.solve(f_yy(x, y), f_y(x, y)), 1.0
            while length > 1e-8 and not f(x, y - length * move) <= f(x, y):
                length /= 2
            y = y - length * move
            if move.norm() < 1e-12:
                break
        return y

    def run() -> tuple[float, str, int | None]:
        x = torch.cat([t.flatten() for t in posed.x]).clone().requires_grad_()
        latest = [torch.cat([t.flatten() for t in posed.y]).clone()]
        begin = time.process_time()
        optimizer = torch.optim.LBFGS(
            [x], max_iter=steps, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            at = x.detach()
            latest[0] = y = lower(at, latest[0])
            if time.process_time() - begin > BASELINE_SECONDS:
                raise ArithmeticError("The baseline takes too long.")
            F_x, F_y = torch.func.grad(F, (0, 1))(at, y)
            x.grad = F_x - f_yx(at, y).T @ torch.linalg.solve(f_yy(at, y), F_y)
            return F(at, y)

        optimizer.step(closure)
        return posed.error(lists(x.detach(), shapes_x)), "", None

    return timed(run)


def rival(name: str, posed: Posed) -> Row:
    """Solves by a method with the best of its step sizes; the time is that of one run."""
    info, rows = METHODS[name], []
    try:
        sizes = curvature_step_sizes(Case("gallery", posed.problem, posed.x, posed.y), info)
    except (ValueError, RuntimeError):
        return Row(math.inf, "refused", None, 0.0)
    for factor in FACTORS:

        def run(factor: float = factor) -> tuple[float, str, int | None]:
            alpha: Any = sizes.alpha
            scaled = (lambda k: factor * alpha(k)) if callable(alpha) else factor * alpha
            method = info.build(sizes._replace(alpha=scaled))
            found = solve(posed.problem, posed.x, posed.y, method, steps=RIVAL_STEPS, batches=posed.batches)
            return posed.error(found.x), found.status, found.evaluations

        rows.append(timed(run))
    return min(rows, key=lambda row: row.error)


def table(names: list[str], rivals: bool) -> list[tuple[str, Posed, dict[str, Row]]]:
    """Runs everything, one line on standard error for each problem."""
    found = []
    for name in names:
        posed = GALLERY[name]()
        rows = {"solve": ours(posed)}
        if posed.baseline:
            rows["dense implicit"] = baseline(posed)
        for other in RIVALS if rivals else ():
            if "large" not in posed.kinds:
                rows[other] = rival(other, posed)
        line = "  ".join(f"{key} {row.error:.0e} {row.seconds:.2f} s" for key, row in rows.items())
        print(f"{name:26s} {rows['solve'].status:12s} {line}", file=sys.stderr, flush=True)
        found.append((name, posed, rows))
    return found


def markdown(found: list[tuple[str, Posed, dict[str, Row]]], rivals: bool) -> str:
    """Returns the table and the summary below it."""
    columns = ["dense implicit", *(RIVALS if rivals else ())]
    head = ["problem", "kind", "error of solve", "status", "evaluations", "s", *columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, posed, rows in found:
        row = rows["solve"]
        cells = [name, ", ".join(sorted(posed.kinds)), f"{row.error:.0e}", row.status, str(row.evaluations)]
        cells.append(f"{row.seconds:.2f}")
        for column in columns:
            other = rows.get(column)
            shown = f"{other.error:.0e}" if other is not None and math.isfinite(other.error) else "-"
            cells.append(shown + (f" ({other.seconds:.2f} s)" if other is not None and column == columns[0] else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", summary(found, columns)])


def summary(found: list[tuple[str, Posed, dict[str, Row]]], columns: list[str]) -> str:
    """Returns how many problems were solved, and how long it took beside the baseline."""

    def share(which: list[Row], limit: float) -> str:
        return f"{sum(row.error <= limit for row in which)} of {len(which)}"

    mine = [rows["solve"] for _, _, rows in found]
    smooth = [rows["solve"] for _, posed, rows in found if "smooth" in posed.kinds]
    right = [row for row in mine if row.error <= 1e-6]
    lines = [
        f"solve: {share(mine, 1e-3)} to 1e-3; smooth ones {share(smooth, 1e-6)} to 1e-6; "
        f"false solved: {sum(row.status == 'solved' and row.error > 1e-3 for row in mine)}; of those right to 1e-6 "
        f"{sum(row.status == 'solved' for row in right)} of {len(right)} say solved."
    ]
    for column in columns:
        others = [rows[column] for _, _, rows in found if column in rows]
        lines.append(f"{column}: {share(others, 1e-3)} to 1e-3, {share(others, 1e-6)} to 1e-6.")
    both = [(rows["solve"], rows["dense implicit"]) for _, _, rows in found if "dense implicit" in rows]
    own = [(mine.seconds, base.seconds) for mine, base in both if base.error <= 1e-6]
    if own:
        medians = statistics.median(a for a, _ in own) / statistics.median(b for _, b in own)
        ratio = statistics.median(a / b for a, b in own)
        lines.append(
            f"Processor seconds on the {len(own)} problems that the baseline solves to 1e-6: median ratio {ratio:.2f}, "
            f"ratio of medians {medians:.2f}."
        )
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", action="store_true", help="run the rivals too")
    parser.add_argument("--only", help="names of problems, separated by commas")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = args.only.split(",") if args.only else list(GALLERY)
    text = markdown(table(names, args.rivals), args.rivals)
    print(text)
    if args.markdown:
        Path(args.markdown).write_text(text + "\n")


if __name__ == "__main__":
    main()
