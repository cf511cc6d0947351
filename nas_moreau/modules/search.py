"""The search inside a user's module: `search_module`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from nas_moreau import distributed
from nas_moreau.config import Config, make_config
from nas_moreau.errors import InputError, quoted
from nas_moreau.modules.check import ModuleLoss
from nas_moreau.modules.cost_table import CostTable
from nas_moreau.modules.found import Found
from nas_moreau.modules.limits import check_limits
from nas_moreau.modules.pricing import Priced, check_penalty
from nas_moreau.modules.result import ModuleResult
from nas_moreau.modules.setup import ModuleSetup, build_module_search, epochs_of, module_identity
from nas_moreau.modules.stream import module_data
from nas_moreau.modules.subject import ChoiceSearch, choice_files, random_picks
from nas_moreau.report import write_report
from nas_moreau.runs import RunFolder
from nas_moreau.runs.own_checkpoints import own_checkpoint
from nas_moreau.search.engine import SearchJob
from nas_moreau.search.methods import check_method, parse_method
from nas_moreau.search.short_training import TRAINED
from nas_moreau.training.device import refuse_float16, set_up_device, torch_settings_restored
from nas_moreau.training.loop import Hook, run_in
from nas_moreau.training.resume import check_like, finished_result, open_folder

AS_THEY_ARE = ("performance", "checkpoint", "logging")
"""Sections of the configuration that need no change for modules."""
SECTIONS = ("search", "derive", *AS_THEY_ARE)
"""Sections of the configuration that a search in a module uses."""
UNUSED = (
    "channels",
    "layers",
    "epochs",
    "batch_size",
    "steps_per_epoch",
    "image_size",
    "augment",
    "penalty",
    "partial_channels",
    "guard",
    "eigenvalue",
)
"""Keys of `search` that are about cells and images."""
DERIVE = ("candidates", "steps")
"""Keys of `derive.trained` that a search in a module uses."""
_KNOWN = "derive.rule, derive.trained.candidates and derive.trained.steps are used"
CANDIDATES = 8
"""Default of derive.trained.candidates; that of derive.trained.steps is the number of steps of the search."""
TOTAL_STEP = 5.25
"""Sum of the learning rates of the alphas over a search: 3e-4 at each of 17,500 steps, as published."""
BETA = 1.0
"""Default weight of the term of +beta: cells have some twenty edges, among which its mean is taken, modules few."""
RATES = (3e-4, 0.1)
"""Bounds of the default learning rate of the alphas."""


@torch_settings_restored()
def search_module(
    module: nn.Module,
    loss: ModuleLoss,
    train: Any,
    validation: Any = None,
    *,
    steps: int,
    method: str = "moreau+beta",
    penalty: Any = None,
    output: str | PathLike[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    metric: Callable[[nn.Module, Any], Any] | None = None,
    batch_size: int | None = None,
    max_parameters: int | None = None,
    max_macs: int | None = None,
    max_ms: float | None = None,
    costs: CostTable | str | PathLike[str] | None = None,
    hooks: Sequence[Hook] = (),
    **sections: Mapping[str, Any],
) -> Found:
    """Searches for the options of every `Choice` in a module and returns what was found.

    The module is copied and stays as it is. Weights and alphas are trained together by a bilevel method: the weights on
    one part of the data, the alphas on another, and a third part is held out for the accuracy that is reported. Under
    torchrun the processes share every batch; BatchNorm uses the rows of each process.

    Args:
        module: Holds at least one Choice.
        loss: (module, batch) -> scalar; called with the module in training mode. It may call the module several times,
            and any of its methods.
        train: A Dataset, a DataLoader, or tensors with one row a sample. Batches may be tuples, lists or dicts.
        validation: Of the same form; by default a part of `train`.
        steps: Steps of the search; with search={"restarts": n} of each of n searches, from other alphas and with
            other batches, whose softmax weights are averaged.
        method: A name of `nas-moreau list methods`, such as moreau+beta, darts1, darts2, drnas, gdas or random.
        penalty: Added to the upper loss: {"ms": 0.5, "macs": ..., "parameters": ...}, weights of the costs that the
            softmax expects, relative to the most expensive options (0 to 1); or a function of {name of a Choice:
            softmax weights} that returns a scalar.
        output: Run folder; by default nothing is written.
        seed: Of every random draw.
        device: "auto" (an accelerator if there is one), "cpu", or a device of torch.
        resume: Continue from the last checkpoint in `output`.
        metric: (module, batch) -> number, reported on the held-out samples.
        batch_size: Samples of a batch; by default that of the DataLoader, else 64.
        max_parameters: Limit that the choices keep: scalars of the module.
        max_macs: Limit that the choices keep: multiply-adds for one sample.
        max_ms: Limit that the choices keep: predicted milliseconds for one sample.
        costs: A table of measured costs (`found.cost_table`), or the file of one; by default measured where a penalty
            or a limit needs it. A run folder holds it as costs.json.
        hooks: Called by the training loop.
        sections: `search`, `derive`, `performance`, `checkpoint`, `logging`: keys of the configuration, such as
            search={"weights": {"lr": 0.05}}. derive={"rule": "trained"} adds a last stage: the choices of the search
            and others drawn by its weights are trained, and those of the lowest loss are taken.

    Raises:
        InputError: An argument cannot be used; nothing was written.
        NonFinite: A loss or direction became NaN or infinite.
        Interrupted: SIGINT or SIGTERM; the state is saved.

    Example:
        net = nn.Sequential(nn.Linear(2, 8), Choice({"tanh": nn.Tanh(), "relu": nn.ReLU()}), nn.Linear(8, 1))
        found = search_module(net, lambda net, batch: mse_loss(net(batch[0]), batch[1]), (x, y), steps=200)
        found.choices, found.verdict, found.network()
    """
    config = module_config(steps, method, seed, device, sections)
    limits = check_limits({"max_parameters": max_parameters, "max_macs": max_macs, "max_ms": max_ms})
    wanted = check_penalty(penalty)
    if resume and output is None:
        raise InputError("resume=True needs the run folder.", "Give output=, the folder of the run to continue.")

    def planned() -> ModuleSetup:
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise InputError(f"batch_size is {quoted(batch_size)}.", "Give a whole number of at least 1.")
        data = module_data(train, validation, batch_size, config, set_up_device(config))
        return build_module_search(module, loss, data, config, steps, metric)

    setup = distributed.run_on_all_ranks(planned)
    priced = Priced.of(setup, wanted, limits, costs, output)
    setup = priced.setup
    if parse_method(method).is_random:
        subject = ChoiceSearch(setup, _configuration(setup, loss, steps) | priced.configuration(), priced)
        return Found(setup, _drawn(subject, output, resume), priced)
    run = module_run(priced, loss, steps, output, resume=resume, hooks=hooks)
    return Found(setup, run.result, priced)


class ModuleRun(NamedTuple):
    """A search that was run: its final state and its result."""

    job: SearchJob
    result: ModuleResult


def module_run(
    priced: Priced,
    loss: Any,
    steps: int,
    output: str | PathLike[str] | None,
    *,
    resume: bool = False,
    hooks: Sequence[Hook] = (),
    entries: Mapping[str, Any] = MappingProxyType({}),
    begin: Callable[[SearchJob], None] | None = None,
) -> ModuleRun:
    """Runs a search that is set up, writes its report, and returns both.

    Args:
        priced: The search and its costs.
        loss: As given, for config.yaml.
        steps: Steps of the search.
        output: Run folder; None to write nothing.
        resume: Continue from the last checkpoint.
        hooks: Called by the training loop.
        entries: Further entries of config.yaml.
        begin: Changes the job before its first step.
    """
    setup = priced.setup
    configuration = _configuration(setup, loss, steps) | priced.configuration() | dict(entries)
    job = SearchJob(setup, ChoiceSearch(setup, configuration, priced), None, module_identity(setup))
    if begin is not None:
        begin(job)
    with closing(setup.data):
        if output is None:
            folder = RunFolder(Path(), "module", None, resuming=False, finished=False)
            return ModuleRun(job, run_in(job, folder, hooks))
        result: ModuleResult = job.run(output, resume, hooks)
    if not job.counters.step:
        _restore(job, Path(output))
    distributed.run_on_rank0(lambda: str(write_report(output)))
    return ModuleRun(job, result)


def module_config(steps: int, method: str, seed: int, device: str, sections: Mapping[str, Mapping[str, Any]]) -> Config:
    """Returns the configuration of a search in a module.

    Raises:
        InputError: A key is unknown, a value does not fit, or the method has no meaning for choices.
    """
    if type(steps) is not int or steps < 1:
        raise InputError(f"steps is {quoted(steps)}.", "Give a whole number of at least 1.")
    for name in sections:
        if name not in SECTIONS:
            raise InputError(
                f"Unknown argument '{name}' of search_module.", f"Known sections are {', '.join(SECTIONS)}."
            )
    search = dict(sections.get("search", {}))
    for name in (name for name in UNUSED if name in search):
        raise InputError(
            f"search.{name} is about cells and images.",
            "Leave it out; steps, batch_size and penalty are arguments of search_module.",
        )
    derive = _derivation(dict(sections.get("derive", {})), steps, method)
    rate = min(max(TOTAL_STEP / steps, RATES[0]), RATES[1])
    search.setdefault("beta", BETA)
    search["alphas"] = {"lr": rate, "lr_min": rate, **dict(search.get("alphas", {}))}
    search |= {"method": method, "epochs": epochs_of(steps)[0]}
    own = {name: dict(sections.get(name, {})) for name in AS_THEY_ARE}
    config = make_config({"seed": seed, "device": device, **own, "search": search, "derive": derive}, "search_module")
    refuse_float16(config.performance)
    found = check_method(config)
    if "pc" in found.additions:
        raise InputError("'+pc' is about the channels of cells; a module has none.", "Leave it out.")
    if found.choose is not None:
        raise InputError(
            f"The method '{method}' chooses among genotypes of a search space.", "Use moreau+beta, darts1 or random."
        )
    if config.performance.compile:
        raise InputError("performance.compile is for cells.", "Compile found.network() instead.")
    return config


def _derivation(given: dict[str, Any], steps: int, method: str) -> dict[str, Any]:
    """Returns the section `derive`: the rule `space`, or `trained` with its candidates and steps."""
    trained = dict(given.pop("trained", {}))
    rule = given.pop("rule", "space")
    others = [*given, *(f"trained.{name}" for name in trained if name not in DERIVE)]
    if others:
        raise InputError(f"derive.{others[0]} is about cells and images.", f"Leave it out; {_KNOWN}.")
    if rule not in ("space", TRAINED):
        raise InputError(f"The derivation rule {quoted(rule)} is for cells.", f"Take space or {TRAINED}.")
    if rule != TRAINED and trained:
        raise InputError(f"derive.trained is of the rule {TRAINED}.", f"Add derive.rule={TRAINED}.")
    if rule == TRAINED and parse_method(method).is_random:
        raise InputError(f"The method '{method}' has no weights to draw candidates by.", "Take moreau+beta or darts1.")
    return {"rule": rule, "trained": {"candidates": CANDIDATES, "steps": steps, **trained}}


def _drawn(subject: ChoiceSearch, output: str | PathLike[str] | None, resume: bool) -> ModuleResult:
    """Returns choices that are drawn uniformly, without a step."""
    setup = subject.setup
    result = subject.drawn(random_picks(setup.places.options, setup.config.seed, keeps=subject.priced.keeps))
    if output is None:
        return result
    identity = module_identity(setup)
    with open_folder(output, subject.configuration(), subject.stage, resume, identity) as folder:
        if folder.finished:
            return subject.result_of(finished_result(folder))
        folder.write_files(choice_files(result.choices, result.weights))
        folder.finish(result.to_dict())
        return result


def _configuration(setup: ModuleSetup, loss: Any, steps: int) -> dict[str, Any]:
    """Returns what config.yaml holds."""
    plain = setup.config.to_dict()
    search = {key: value for key, value in plain["search"].items() if key not in UNUSED}
    sizes = {"steps": steps, "batch_size": setup.data.lower.batch_size, "epoch_steps": setup.epoch_steps}
    names = {"class": type(setup.whole.module).__name__, "loss": _name_of(loss)}
    if setup.metric is not None:
        names["metric"] = _name_of(setup.metric)
    if setup.data.upper.batch_size != setup.data.lower.batch_size:
        sizes["validation_batch_size"] = setup.data.upper.batch_size
    return {
        "seed": plain["seed"],
        "device": plain["device"],
        "module": {
            **names,
            **sizes,
            "choices": {name: list(options) for name, options in setup.places.options.items()},
        },
        "search": search,
        **({"derive": _trained_keys(plain["derive"])} if plain["derive"]["rule"] == TRAINED else {}),
        **{name: plain[name] for name in AS_THEY_ARE},
    }


def _trained_keys(derive: dict[str, Any]) -> dict[str, Any]:
    return {"rule": derive["rule"], "trained": {name: derive["trained"][name] for name in DERIVE}}


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


@torch.no_grad()
def _restore(job: SearchJob, folder: Path) -> None:
    """Loads the weights of a run that is finished already."""
    loaded = distributed.run_on_rank0(lambda: own_checkpoint(folder))
    if loaded is None:
        raise InputError(f"{folder} has a result and no checkpoint.", "Restore its checkpoints, or search again.")
    payload = loaded[0]
    check_like([*payload["x"], *payload["y"]], [*job.x, *job.y])
    job.load_state_dict(payload)
    job.setup.write_back(job.x, job.y)
