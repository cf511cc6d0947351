"""What a search in a module found: the choices, how sure they are, and the module without any Choice."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nas_moreau.errors import unknown
from nas_moreau.modules.choice import chosen_module, find_choices
from nas_moreau.modules.problem import ModuleTensors
from nas_moreau.modules.result import ModuleResult, Weights, choices_json
from nas_moreau.modules.setup import ModuleSetup


class Found:
    """The outcome of `search_module`.

    Attributes:
        result: The same as plain data (result.json).
    """

    def __init__(self, setup: ModuleSetup, result: ModuleResult):
        self.setup, self.result = setup, result

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
        picks, known = {}, self.setup.places.options
        for name in choices or {}:
            if name not in known:
                raise unknown("Choice", name, known)
        for name, options in known.items():
            option = (choices or {}).get(name, self.choices[name])
            if option not in options:
                raise unknown(f"option of the Choice '{name}'", option, options)
            picks[name] = options.index(option)
        whole = copy.deepcopy(self.setup.whole)
        if fresh:
            with torch.no_grad():
                for name, parameter in ModuleTensors.of(whole).weights.items():
                    parameter.copy_(self.setup.initial[name])
                for part in whole.modules():
                    if isinstance(part, nn.modules.batchnorm._NormBase):
                        part.reset_running_stats()
        places = find_choices(whole.module)
        return chosen_module(whole.module, picks, places).eval()

    def choices_json(self) -> str:
        """Returns the choices as JSON: `{"version": 1, "choices": {name: option}}`."""
        return choices_json(self.choices).decode()

    def to_dict(self) -> dict[str, Any]:
        """Returns what result.json holds."""
        return self.result.to_dict()

    def __repr__(self) -> str:
        lines = [f"{name}: {option} ({self.weights[name][option]:.2f})" for name, option in self.choices.items()]
        return "\n".join(["Found(", *(f"  {line}" for line in lines), f"  {self.verdict}", ")"])
