"""The verb solve: bilevel problems from the paper, data hyper-cleaning, few-shot learning."""

from __future__ import annotations

import argparse
from typing import Any

from nas_moreau.cli import options
from nas_moreau.cli.options import new_folder, working_in
from nas_moreau.cli.output import print_next, print_rows
from nas_moreau.cli.verbs import option, verb
from nas_moreau.data.sources import find_files
from nas_moreau.errors import InputError
from nas_moreau.report.format import duration, memory, percent
from nas_moreau.runs.heartbeat import heartbeat

NETWORKS = "hyper-cleaning and few-shot"


@verb(
    "solve",
    "solve a bilevel problem: small ones, data hyper-cleaning, few-shot",
    examples=[
        "solve sine --n 100",
        "solve quadratic --method bome --json",
        "solve lasso --output checkpoints/lasso                    # with a report",
        "list tasks",
        "solve hyper-cleaning --data folder:photos                 # which of my own labels are wrong?",
        "solve hyper-cleaning --data fashion_mnist --download --corrupt 0.5 --output checkpoints/clean",
        "solve few-shot --data omniglot:DIR --ways 5 --shots 1",
    ],
    options=[
        option("task", metavar="TASK", help="a name of `list tasks`"),
        option("--n", type=int, help="size of the problem (hyper-cleaning: training samples, default 5000)"),
        option(
            "--method",
            help="a name of `list methods`; default: moreau for data and group-lasso, automatic for small problems "
            "(the solver decides and certifies)",
        ),
        option("--steps", type=int, help="maximum number of steps"),
        options.SEED,
        option("--debias", action="store_true", help="small problems, with --method: remove the bias of the penalty"),
        option("--no-polish", action="store_true", help="small problems, with --method: keep the method's own y"),
        *(o._replace(group=NETWORKS) for o in (options.DATA, options.DATA_DIR, options.DOWNLOAD, options.DEVICE)),
        option(
            "--corrupt",
            type=float,
            metavar="RATE",
            group=NETWORKS,
            help="share of labels to change for a demonstration (default 0; 0.5 for shapes)",
        ),
        option("--ways", type=int, group=NETWORKS, help="few-shot: classes of a task (default 5)"),
        option("--shots", type=int, group=NETWORKS, help="few-shot: training images of each class (default 1)"),
        options.OUTPUT,
        options.RESUME._replace(group=NETWORKS),
    ],
)
def solve(args: argparse.Namespace) -> dict[str, Any]:
    """Solves a bilevel problem and prints the outcome."""
    if args.data and not args.resume:
        from nas_moreau.config import DataConfig

        find_files(options.as_text(args.data, "--data"), args.data_dir or DataConfig().directory, args.download)
    with heartbeat("solve: loading torch"):
        from nas_moreau.problems.tasks import SmallTask, find_task, solve_on_data, solve_task
        from nas_moreau.report.task import next_step
        from nas_moreau.runs.history import Stage

    if isinstance(find_task(args.task), SmallTask):
        if args.resume:
            raise InputError(f"{args.task} takes seconds and is not resumed.", "Leave --resume out.")
        output = new_folder(args, "") if args.output else None
        with heartbeat(f"solving {args.task}"):
            result = solve_task(args.task, _given(args), output).to_dict()
        if not args.json:
            hidden = ("x", "y", "certificate", "seconds", "peak_memory_bytes")
            shown = {name: value for name, value in result.items() if name not in hidden and value is not None}
            shown |= {"time": duration(result["seconds"]), "peak memory": memory(result["peak_memory_bytes"])}
            known = {name: value for name, value in result["certificate"].items() if value is not None}
            print_rows(
                [(name, f"{value:.6g}" if isinstance(value, float) else str(value)) for name, value in shown.items()]
                + [(name.replace("_", " "), f"{value:.1e}") for name, value in known.items()]
                + ([] if output is None else [("report", str(output / "report.html"))])
            )
            print_next(*next_step({}, result))
        return result
    output = new_folder(args, f"solve-{args.task}-seed{args.seed or 0}")
    with working_in(output):
        result = solve_on_data(args.task, _given(args), output, args.resume)
    if not args.json:
        _print_learning(args.task, result, str(output / "report.html"))
        print_next(*next_step(Stage(output).config, result))
    return result


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options that the command line names."""
    names = ("n", "method", "steps", "seed", "device", "corrupt", "ways", "shots")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    data = {"name": args.data and options.as_text(args.data, "--data"), "directory": args.data_dir}
    data["download"] = args.download or None
    data = {name: value for name, value in data.items() if value is not None}
    return (
        given
        | ({"data": data} if data else {})
        | ({"debias": True} if args.debias else {})
        | ({"polish": False} if args.no_polish else {})
    )


def _print_learning(task: str, result: dict[str, Any], report: str) -> None:
    from nas_moreau.report.task import doubt_about

    spread = f" +- {100 * result['interval']:.2f}" if "interval" in result else ""
    images = f" of {result['test_images']:,} images" if "test_images" in result else ""
    rows = [
        ("method", f"{result['method']}, {result['steps']} steps, {result['evaluations']} gradient evaluations"),
        ("test accuracy", f"{100 * result['accuracy']:.2f}{spread} %{images}"),
        ("time", f"{result['seconds']:.1f} s, at most {result['peak_memory_bytes'] / 2**20:.0f} MiB"),
    ]
    if task == "hyper-cleaning":
        rows.append(("flagged as wrong", f"{percent(result['flagged'])} of {result['n']} samples"))
        if (doubt := doubt_about(result)) is not None:
            rows.append(("note", doubt))
        if result["f1"] is not None:
            parts = f"precision {percent(result['precision'])}, recall {percent(result['recall'])}"
            rows.append(("F1 of finding them", f"{percent(result['f1'])}  ({parts})"))
        rows += [(name.replace("_", " "), result[name]) for name in ("suspects", "cleaned", "contact_sheet")]
    print_rows([*rows, ("report", report)])
