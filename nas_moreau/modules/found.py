"""What a search in a module found: the choices, how sure they are, and the module without any Choice."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from torch import nn

from nas_moreau.errors import InputError, quoted, unknown
from nas_moreau.modules.cost_table import CostTable
from nas_moreau.modules.export import export_module
from nas_moreau.modules.pricing import Priced
from nas_moreau.modules.result import ModuleResult, Weights, choices_json
from nas_moreau.modules.setup import ModuleSetup
from nas_moreau.modules.subject import random_picks
from nas_moreau.modules.training import RandomComparison, compare_choices, plain_network
from nas_moreau.training.device import set_up_device, torch_settings_restored


class Found:
    """The outcome of `search_module`.

    Attributes:
        result: The same as plain data (result.json).
    """

    def __init__(self, setup: ModuleSetup, result: ModuleResult, priced: Priced):
        self.setup, self.result, self.priced = setup, result, priced

    @property
    def cost_table(self) -> CostTable:
        """The cost of every option, measured now if the search did not need it; `save(path)` writes it."""
        if self.priced.costs is None:
            self.priced = self.priced.measured()
        assert self.priced.costs is not None
        return self.priced.costs.table

    def costs(self, choices: Mapping[str, str] | None = None) -> dict[str, float]:
        """Returns "parameters", "macs" and "ms" of the chosen network for one sample, ms as predicted by `cost_table`.

        Args:
            choices: Other options for some decisions.

        Raises:
            InputError: A decision or option is unknown.
        """
        assert self.cost_table is not None
        return self.priced.costs_of(self.picks(choices))

    @property
    def choices(self) -> dict[str, str]:
        """Name of a Choice -> chosen option."""
        return dict(self.result.choices)

    @property
    def weights(self) -> Weights:
        """Name of a Choice -> option -> softmax weight."""
        return self.result.weights

    @property
    def verdict(self) -> str:
        """How sure the choices are, in a sentence."""
        return self.result.verdict

    @property
    def margin(self) -> float:
        """Weight of the chosen option minus the next one, of the decision where that is smallest."""
        return self.result.margin

    def network(self, fresh: bool = False, choices: Mapping[str, str] | None = None) -> nn.Module:
        """Returns the module with the chosen options and no Choice, in evaluation mode.

        Its names are those of a module in which each Choice was replaced by the option, so that its `state_dict` loads
        into such a module without this package.

        Args:
            fresh: With the weights that the module came with, instead of those of the search; parameters that are
                never trained are the same in both.
            choices: Other options for some decisions.

        Raises:
            InputError: A decision or option is unknown.
        """
        return plain_network(self.setup, self.picks(choices), fresh=fresh)

    def picks(self, choices: Mapping[str, str] | None = None) -> dict[str, int]:
        """Returns decision -> number of the chosen option.

        Args:
            choices: Other options for some decisions.

        Raises:
            InputError: A decision or option is unknown.
        """
        picks, known = {}, self.setup.places.options
        for name in choices or {}:
            if name not in known:
                raise unknown("Choice", name, known)
        for name, options in known.items():
            option = (choices or {}).get(name, self.choices[name])
            if option not in options:
                raise unknown(f"option of the Choice '{name}'", option, options)
            picks[name] = options.index(option)
        return picks

    @torch_settings_restored()
    def compare_random(
        self,
        n: int = 8,
        steps: int | None = None,
        seeds: int = 5,
        others: Mapping[str, Mapping[str, str]] | None = None,
    ) -> RandomComparison:
        """Trains the found choices and n random ones by one recipe, and returns both, with the p-value.

        Each is trained from the weights that the module came with, on all samples but the held-out ones, with the
        learning rates of the weights in the search, and evaluated on the held-out samples.

        Args:
            n: Number of random choices; they keep the limits of the search.
            steps: Steps of each training; by default those of the search.
            seeds: Trainings of the found choices (and of each of `others`), with other orders of the samples.
            others: Name -> choices to compare with, for example the largest options.

        Raises:
            InputError: A number is below 1, a name is unknown, or too few random choices keep the limits.
        """
        steps = self.setup.restart_steps if steps is None else steps
        for name, value in {"n": n, "steps": steps, "seeds": seeds}.items():
            if type(value) is not int or value < 1:
                raise InputError(f"{name} is {quoted(value)}.", "Give a whole number of at least 1.")
        named = {name: {**self.choices, **choices} for name, choices in (others or {}).items()}
        kinds = {"found": [self.choices] * seeds, "random": self.random_choices(n)}
        kinds |= {name: [choices] * seeds for name, choices in named.items()}
        set_up_device(self.setup.config)
        return compare_choices(lambda choices: self.network(True, choices), self.setup, kinds, steps)

    def random_choices(self, n: int) -> list[dict[str, str]]:
        """Returns n random choices that keep the limits of the search.

        Args:
            n: How many.

        Raises:
            InputError: Too few keep the limits.
        """
        known, seed = self.setup.places.options, self.setup.config.seed
        drawn = [random_picks(known, seed, 1 + number, self.priced.keeps) for number in range(n)]
        return [{name: options[picks[name]] for name, options in known.items()} for picks in drawn]

    def export(self, form: str, path: str | PathLike[str], fresh: bool = False) -> Path:
        """Writes the network as "torch-export" or "onnx", compares the outputs of the file, and returns its path.

        Args:
            form: "torch-export" or "onnx".
            path: The file.
            fresh: As for `network`.

        Raises:
            InputError: The format is unknown, or the network cannot be exported.
        """
        return export_module(self.network(fresh), self.setup.checked.call, form, path)

    def choices_json(self) -> str:
        """Returns the choices as JSON: `{"version": 1, "choices": {name: option}}`."""
        return choices_json(self.choices).decode()

    def to_dict(self) -> dict[str, object]:
        """Returns what result.json holds."""
        return self.result.to_dict()

    def __repr__(self) -> str:
        lines = [f"{name}: {option} ({self.weights[name][option]:.2f})" for name, option in self.choices.items()]
        return "\n".join(["Found(", *(f"  {line}" for line in lines), f"  {self.verdict}", ")"])
