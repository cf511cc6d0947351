"""The verb `search` with --module: a search inside the user's own module, of a file named by --import."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from nas_moreau import distributed
from nas_moreau.cli.options import as_text, new_folder, working_in
from nas_moreau.cli.output import note, print_json, print_next, print_rows
from nas_moreau.cli.verbs import option
from nas_moreau.errors import InputError, unknown
from nas_moreau.runs.heartbeat import heartbeat

_GROUP = "a search inside your own module (the names are those of files given with --import)"
MODULE = [
    option("--module", metavar="NAME", group=_GROUP, help="a function that returns the module, or the module"),
    option("--loss", metavar="NAME", group=_GROUP, help="(module, batch) -> scalar (default loss)"),
    option("--train", metavar="NAME", group=_GROUP, help="data, or a function that returns them (default train)"),
    option("--validation", metavar="NAME", group=_GROUP, help="the same (default validation, if any)"),
    option("--metric", metavar="NAME", group=_GROUP, help="(module, batch) -> number (default metric, if any)"),
    option("--steps", type=int, metavar="N", group=_GROUP, help="steps of the search (default 1000)"),
    option(
        "--batch-size", type=int, metavar="N", group=_GROUP, help="samples of a batch (default: the loader's or 64)"
    ),
    option("--max-parameters", type=int, metavar="N", group=_GROUP, help="limit that the choices keep"),
    option("--max-macs", type=int, metavar="N", group=_GROUP, help="limit on multiply-adds of one sample"),
    option("--max-ms", type=float, metavar="MS", group=_GROUP, help="limit on measured latency of one sample"),
    option("--penalty", metavar="KIND=W,...", group=_GROUP, help="costs in the upper loss, e.g. ms=0.5,parameters=0.1"),
    option("--compare-random", type=int, metavar="N", group=_GROUP, help="at the end train N random choices too"),
    option("--pareto", type=int, metavar="N", group=_GROUP, help="N searches from one start: a front of loss and cost"),
    option("--cost", metavar="KIND", group=_GROUP, help="of --pareto: macs (default), parameters or ms (measured)"),
]
_NOT_OF_A_FRONT = ("penalty", "max_parameters", "max_macs", "max_ms")
STEPS = 1000
_ABOUT_CELLS = ("space", "data", "retrain", "distributed")


def refuse_without_module(args: argparse.Namespace) -> None:
    """Raises InputError if options of `MODULE` are given without --module."""
    names = [entry.names[0] for entry in MODULE[1:]]
    given = [name for name in names if getattr(args, name[2:].replace("-", "_")) is not None]
    if given and not args.module:
        raise InputError(f"{given[0]} is for a search inside a module.", "Name the module with --module.")


def search_inside(args: argparse.Namespace) -> dict[str, Any] | None:
    """Searches inside the module that the options name, and prints the choices."""
    given = {name: getattr(args, name) for name in ("preset", "config", "data", "data_dir") if getattr(args, name)}
    if given:
        name = next(iter(given)).replace("_", "-")
        raise InputError(f"--{name} is for searches in a space of cells.", "Leave it out with --module.")
    from nas_moreau.runs.folder import check_output

    settings = _settings(args)
    output = distributed.run_on_rank0(lambda: new_folder(args, f"module-{args.module}-seed{settings['seed']}"))
    if args.pareto is None:  # before the user's functions make data
        distributed.run_on_rank0(lambda: check_output(output, "module", args.resume))
    make, loss = _named(args, args.module, "module"), _named(args, args.loss or "loss", "loss")
    with heartbeat("making the training data"):
        train = _made(_named(args, args.train or "train", "train"))
    validation = _optional(args, args.validation, "validation")
    keywords = {
        "steps": STEPS if args.steps is None else args.steps,
        "metric": _optional(args, args.metric, "metric"),
        "batch_size": args.batch_size,
        "penalty": _penalty(args.penalty),
        "max_parameters": args.max_parameters,
        "max_macs": args.max_macs,
        "max_ms": args.max_ms,
        **settings,
    }
    if args.pareto is not None:
        return _front(args, make, loss, (train, validation), output, keywords)
    if args.cost is not None:
        raise InputError("--cost is of --pareto.", "Add --pareto N, or leave it out.")
    if args.dry_run:
        print_json({"output": str(output), **_described(_made(make), loss, train, _made(validation), keywords)})
        return None
    import torch

    from nas_moreau.modules import search_module

    torch.manual_seed(settings["seed"])
    with working_in(output):
        module, data = _made(make), (train, _made(validation))
        found = search_module(module, loss, *data, output=output, resume=args.resume, **keywords)
    result = found.to_dict()
    rows = [*found.choices.items(), ("verdict", found.verdict)]
    rows += [("report", str(output / "report.html")), ("choices", str(output / "choices.json"))]
    if not args.json:
        print_rows(rows)
    if args.compare_random:
        from nas_moreau.runs.manifest import write_recorded

        comparison = found.compare_random(args.compare_random)
        result["comparison"] = comparison.to_dict()
        if not distributed.rank():
            write_recorded(output, {"comparison.json": json.dumps(result["comparison"], indent=1).encode()})
        note(str(comparison))
    if not args.json:
        print_next("Write the report again", f"nas-moreau report {shlex.quote(str(output))}")
    return result


def _front(
    args: argparse.Namespace, make: Any, loss: Any, data: tuple[Any, Any], output: Path, keywords: dict[str, Any]
) -> dict[str, Any] | None:
    """Searches for a front of loss and cost, and prints it."""
    for name in _NOT_OF_A_FRONT:
        if getattr(args, name) is not None:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} does not go with --pareto.", "Leave one of them out.")
    keywords = {name: value for name, value in keywords.items() if name not in _NOT_OF_A_FRONT}
    if args.compare_random not in (None, args.pareto):
        raise InputError(
            "A front is compared with as many random choices, and searches from scratch, as it has points.",
            f"Write --compare-random {args.pareto}, or leave it out.",
        )
    front_keywords = {"points": args.pareto, "cost": args.cost or "macs", "compare": args.compare_random is not None}
    if args.dry_run:
        described = _described(_made(make), loss, data[0], _made(data[1]), keywords)
        print_json({"output": str(output), **described, **front_keywords})
        return None
    import torch

    from nas_moreau.modules import pareto

    torch.manual_seed(keywords["seed"])
    with working_in(output):
        module, given = _made(make), (data[0], _made(data[1]))
        front = pareto(module, loss, *given, output=output, resume=args.resume, **front_keywords, **keywords)
    if not args.json:
        print(front)
        print_rows([("knee", f"front-{front.knee.number}"), ("page", str(output / "front.html"))])
        knee = output / f"front-{front.knee.number}"
        print_next("See the search of the knee", f"nas-moreau report {shlex.quote(str(knee))}")
    return front.to_dict()


def _imported(args: argparse.Namespace) -> list[Any]:
    if not args.imports:
        raise InputError("--module needs the file that it is in.", "Name it with --import FILE.py.")
    return [sys.modules[Path(name).stem if name.endswith(".py") else name] for name in args.imports]


def _named(args: argparse.Namespace, name: str, what: str) -> Any:
    """Returns what the imported files call `name`."""
    modules = _imported(args)
    for module in modules:
        if hasattr(module, name):
            return getattr(module, name)
    known = [key for module in modules for key in vars(module) if not key.startswith("_")]
    error = unknown(f"name for --{what}", name, known)
    if len(error.cure) > 200:
        raise InputError(error.cause, f"Define it in {', '.join(args.imports)}, or name another one.")
    raise error


def _optional(args: argparse.Namespace, name: str | None, usual: str) -> Any:
    if name is not None:
        return _named(args, name, usual)
    return next((getattr(module, usual) for module in _imported(args) if hasattr(module, usual)), None)


def _made(given: Any) -> Any:
    """Returns what a function without arguments returns; anything else as it is."""
    import torch

    is_data = hasattr(given, "__getitem__") or isinstance(given, torch.nn.Module)
    return given() if callable(given) and not is_data else given


def _penalty(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    found = {}
    for part in text.split(","):
        kind, _, value = part.partition("=")
        try:
            found[kind.strip()] = float(value)
        except ValueError:
            raise InputError(f"Invalid penalty '{part}'.", "Write --penalty ms=0.5,parameters=0.1.") from None
    return found


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns method, seed, device and sections of the `key=value` arguments and options."""
    from nas_moreau.config import make_config

    overrides = [as_text(text, "an argument") for text in args.overrides]
    if args.on_nonfinite:
        overrides.append(f"checkpoint.on_nonfinite={args.on_nonfinite}")
    chosen = make_config({}, "the command line", overrides).model_dump(mode="json", exclude_unset=True)
    for section in _ABOUT_CELLS:
        if section in chosen:
            raise InputError(f"'{section}' is about searches in a space of cells.", "Leave it out with --module.")
    search = chosen.pop("search", {})
    method = search.pop("method", "moreau+beta")
    seed, device = chosen.pop("seed", 0), chosen.pop("device", "auto")
    return {
        "method": method,
        "seed": seed if args.seed is None else args.seed,
        "device": device if args.device is None else args.device,
        "search": search,
        **chosen,
    }


def _described(module: Any, loss: Any, train: Any, validation: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """Returns the sizes of the search, for --dry-run; refuses what the search would."""
    from nas_moreau.modules.search import SECTIONS, module_config
    from nas_moreau.modules.setup import build_module_search
    from nas_moreau.modules.stream import module_data
    from nas_moreau.training.device import set_up_device, torch_settings_restored

    sections = {name: keywords[name] for name in SECTIONS if name in keywords}
    steps, method = keywords["steps"], keywords["method"]
    config = module_config(steps, method, keywords["seed"], keywords["device"], sections)
    with torch_settings_restored():
        device = set_up_device(config)
        data = module_data(train, validation, keywords["batch_size"], config, device)
        setup = build_module_search(module, loss, data, config, steps, keywords["metric"])
    parts = {name: len(getattr(data, name).numbers) for name in ("lower", "upper", "held_out")}
    return {
        "device": str(device),
        "method": method,
        "steps": steps,
        "batch_size": data.lower.batch_size,
        "samples": parts,
        "weights": sum(tensor.numel() for tensor in setup.posed.y),
        "choices": {name: list(options) for name, options in setup.places.options.items()},
    }
