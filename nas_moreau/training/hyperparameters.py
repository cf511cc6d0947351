"""The settings and the outcome of a run for TensorBoard's HPARAMS page, in the same columns for every stage."""

from __future__ import annotations

from nas_moreau.config import Config, flatten
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
    settings = flatten({section: plain[section] for section in _SECTIONS["run"]})
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
