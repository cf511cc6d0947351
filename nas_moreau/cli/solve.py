"""The verb solve: bilevel problems from the paper, data hyper-cleaning, few-shot learning."""

from __future__ import annotations

import argparse
from typing import Any

from nas_moreau.cli import options
from nas_moreau.cli.options import new_folder, working_in
from nas_moreau.cli.output import percent, print_rows
from nas_moreau.cli.verbs import option, verb
from nas_moreau.errors import InputError, unknown

NETWORKS = "hyper-cleaning and few-shot"


@verb(
    "solve",
    "solve a bilevel problem: small ones, data hyper-cleaning, few-shot",
    examples=[
        "solve sine --n 100",
        "solve quadratic --method bome --json",
        "list tasks",
        "solve hyper-cleaning --data folder:photos --corrupt 0     # which of my own labels are wrong?",
        "solve hyper-cleaning --data fashion_mnist --download --output checkpoints/clean",
        "solve few-shot --data omniglot:DIR --ways 5 --shots 1",
    ],
    options=[
        option("task", metavar="TASK", help="a name of `list tasks`"),
        option("--n", type=int, help="size of the problem (hyper-cleaning: training samples, default 5000)"),
        option("--method", help="moreau (default) or another one"),
        option("--steps", type=int, help="maximum number of steps"),
        options.SEED,
        option("--debias", action="store_true", help="small problems: remove the bias of the penalty"),
        option("--no-polish", action="store_true", help="small problems: keep the method's own y"),
        *(o._replace(group=NETWORKS) for o in (options.DATA, options.DATA_DIR, options.DOWNLOAD, options.DEVICE)),
        option(
            "--corrupt",
            type=float,
            metavar="RATE",
            group=NETWORKS,
            help="share of labels to change; 0 judges your own labels (default 0.5)",
        ),
        option("--ways", type=int, group=NETWORKS, help="few-shot: classes of a task (default 5)"),
        option("--shots", type=int, group=NETWORKS, help="few-shot: training images of each class (default 1)"),
        *(o._replace(group=NETWORKS) for o in (options.OUTPUT, options.RESUME)),
    ],
)
def solve(args: argparse.Namespace) -> dict[str, Any]:
    """Solves a bilevel problem and prints the outcome."""
    from nas_moreau.problems import small_tasks as small
    from nas_moreau.problems.network_tasks import TASKS

    if args.task in TASKS:
        return _solve_networks(args)
    if args.task not in small.TASKS:
        raise unknown("task", args.task, [*small.TASKS, *TASKS])
    for name in ("data", "data_dir", "device", "corrupt", "ways", "shots", "output"):
        if getattr(args, name) is not None:
            raise InputError(f"{args.task} has no option --{name.replace('_', '-')}.", f"It is for {', '.join(TASKS)}.")
    if args.resume or args.download:
        raise InputError(f"{args.task} has neither data nor a run folder.", "Leave --resume and --download out.")
    method, seed = args.method or "moreau", args.seed or 0
    result = small.solve_task(args.task, args.n, method, args.steps, seed, args.debias, not args.no_polish)
    if not args.json:
        print_rows([(name, str(value)) for name, value in result.items() if name not in ("x", "y")])
    return result


def _solve_networks(args: argparse.Namespace) -> dict[str, Any]:
    from nas_moreau.problems.network_tasks import Wish, solve_networks

    if args.debias or args.no_polish:
        raise InputError(f"{args.task} has neither bias removal nor polish.", "Leave --debias and --no-polish out.")
    wish = Wish(
        data=args.data,
        directory=args.data_dir,
        download=args.download,
        method=args.method,
        steps=args.steps,
        seed=args.seed,
        device=args.device,
        n=args.n,
        corrupt=args.corrupt,
        ways=args.ways,
        shots=args.shots,
    )
    output = new_folder(args, f"solve-{args.task}-seed{args.seed or 0}")
    with working_in(output):
        result = solve_networks(args.task, wish, output, args.resume)
    if not args.json:
        spread = f" +- {100 * result['interval']:.2f}" if "interval" in result else ""
        rows = [
            ("method", f"{result['method']}, {result['steps']} steps, {result['evaluations']} gradient evaluations"),
            ("test accuracy", f"{100 * result['accuracy']:.2f}{spread} %"),
            ("time", f"{result['seconds']:.1f} s, at most {result['peak_memory_bytes'] / 2**20:.0f} MiB"),
        ]
        if args.task == "hyper-cleaning":
            rows.append(("flagged as wrong", f"{percent(result['flagged'])} of {result['n']} samples"))
            if result["f1"] is not None:
                parts = f"precision {percent(result['precision'])}, recall {percent(result['recall'])}"
                rows.append(("F1 of finding them", f"{percent(result['f1'])}  ({parts})"))
            rows += [(name.replace("_", " "), result[name]) for name in ("suspects", "cleaned", "contact_sheet")]
        print_rows(rows)
    return result
