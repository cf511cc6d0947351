"""Under which conditions each method of a comparison runs: own settings, evaluations, step of the alphas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas_moreau.config import Config, SearchConfig, make_config
from nas_moreau.errors import InputError
from nas_moreau.runs.plain_files import read_json
from nas_moreau.search.methods import parse_method

FILE = "method_settings.json"
SECTIONS = ("search", "derive")
"""What one method may have settings of: all others are the protocol, which all methods share."""
Settings = Mapping[str, Sequence[str]]
"""Method -> overrides `key=value` that only its searches get."""


@dataclass(frozen=True)
class Conditions:
    """What the searches of a method cost and how they are tuned.

    Attributes:
        method: The search method.
        evaluations: Gradient evaluations (forward and backward passes over a batch) of one step.
        steps: Steps of a search; None where an epoch is a whole pass over the images.
        alphas: The update rule of the alphas with its step size, "mirror 0.1"; None for a method without one.
        settings: Overrides that only this method has.
    """

    method: str
    evaluations: int
    steps: int | None
    alphas: str | None
    settings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the conditions as plain data, for result.json."""
        return asdict(self)


def split_settings(overrides: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Returns the overrides of all methods, and those of single methods: "darts1:search.alphas.lr=0.01"."""
    common: list[str] = []
    single: dict[str, list[str]] = {}
    for override in overrides:
        match = re.fullmatch(r"([^=:]+):([^=:]+=.*)", override, re.DOTALL)
        if match:
            single.setdefault(match[1].strip(), []).append(match[2])
        else:
            common.append(override)
    return common, single


def config_of(config: Config, method: str, seed: int, settings: Settings) -> Config:
    """Returns the configuration of a search of a comparison.

    Args:
        config: Of the comparison.
        method: The method.
        seed: The seed.
        settings: Of all methods.

    Raises:
        InputError: A setting is not valid.
    """
    own = [*settings.get(method, ()), f"search.method={json.dumps(method)}", f"seed={seed}"]
    return make_config(config.to_dict(), f"the settings of {method}", own)


def agreed_settings(given: Settings, methods: Iterable[str], output: Path) -> dict[str, list[str]]:
    """Returns the settings of every method: those given, those recorded in the folder, or none.

    Args:
        given: On the command line.
        methods: All methods of the comparison.
        output: The folder, where an earlier part of the comparison may have been done.

    Raises:
        InputError: A method does not take part, a key belongs to the protocol, or the method was begun otherwise.
    """
    methods = list(methods)
    for method, overrides in given.items():
        if method not in methods:
            cure = f"Add it to --methods, or give settings of {', '.join(methods)}."
            raise InputError(f"There are settings of '{method}', which does not take part.", cure)
        for override in overrides:
            if override.split(".")[0].strip() not in SECTIONS or override.split("=")[0].strip() == "search.method":
                raise InputError(
                    f"'{override}' cannot be set for {method} alone: all methods share what it sets.",
                    f"A method can have its own keys of {' and '.join(SECTIONS)}; give the others without 'METHOD:'.",
                )
    recorded: dict[str, list[str]] = read_json(output / FILE) or {}
    for method in given.keys() & recorded.keys():
        if list(given[method]) != recorded[method]:
            old = " ".join(f"{method}:{override}" for override in recorded[method]) or "none"
            raise InputError(
                f"The searches of {method} in {output} were begun with other settings for it alone: {old}.",
                "Give those, leave them out, or use another --output.",
            )
    return {method: list(given.get(method, ())) for method in methods} | recorded


def conditions(config: Config, method: str, settings: Settings) -> Conditions:
    """Returns the conditions of a method of a comparison; arguments as those of `config_of`."""
    search = config_of(config, method, 0, settings).search
    known = parse_method(method)
    steps = search.steps_per_epoch and search.all_epochs * search.steps_per_epoch
    return Conditions(
        method,
        known.count(search),
        steps if known.takes_steps else 0,
        _alphas(search) if known.learns_alphas and not known.is_automatic else None,
        tuple(settings.get(method, ())),
    )


def _alphas(search: SearchConfig) -> str:
    alphas = search.alphas
    rule = f"adam {alphas.lr:g}" if alphas.rule == "adam" else f"{alphas.rule} {alphas.step:g}"
    return f"{rule}, {search.restarts} restarts" if search.restarts > 1 else rule
