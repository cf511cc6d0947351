"""The settings and the outcome of a run for TensorBoard's HPARAMS page, in the same columns for every stage."""

from __future__ import annotations

from typing import Any

from nas_moreau.config import Config
from nas_moreau.runs import Monitor

_SECTIONS = {"search": ("search",), "retrain": ("retrain",), "run": ("search", "retrain")}


def show_outcome(
    monitor: Monitor,
    config: Config,
    stage: str,
    digest: str,
    step: int = 0,
    held_out_accuracy: float | None = None,
    test_accuracy: float | None = None,
    parameters: int | None = None,
    search_seconds: float | None = None,
) -> None:
    """Shows a finished run's settings and final numbers.

    Args:
        monitor: Of the run's folder.
        config: Of the run; settings of a section that the stage does not use are left blank.
        stage: "search", "retrain" or "run" (both).
        digest: Of the cell.
        step: At which the final numbers stand.
        held_out_accuracy: Of the supernet, 0..1.
        test_accuracy: Of the retrained network, 0..1.
        parameters: Of that network, auxiliary head excluded.
        search_seconds: Wall-clock time of the search.
    """
    plain = config.to_dict()
    settings = {f"{section}.{name}": v for section in _SECTIONS["run"] for name, v in _flat(plain[section]).items()}
    unused = {name for name in settings if name.split(".")[0] not in _SECTIONS[stage]}
    about = {"stage": stage, "cell": digest, "space": config.space, "data": config.data.name, "seed": config.seed}
    monitor.hparams(
        about | settings,
        {
            "final/test_accuracy": test_accuracy,
            "final/held_out_accuracy": held_out_accuracy,
            "final/parameters": parameters,
            "final/search_seconds": search_seconds,
        },
        step,
        unused,
    )


def _flat(section: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a section by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        inner = _flat(value) if isinstance(value, dict) else None
        found |= {name: value} if inner is None else {f"{name}.{key}": v for key, v in inner.items()}
    return found
