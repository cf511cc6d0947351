"""A run's settings and final numbers for TensorBoard's HPARAMS page, in the same columns for every stage."""

from __future__ import annotations

from collections.abc import Mapping

from nas_moreau.config import Config, flatten
from nas_moreau.runs import Monitor

_SECTIONS = {"search": ("search",), "retrain": ("retrain",), "run": ("search", "retrain")}
_METRICS = ("test_accuracy", "held_out_accuracy", "parameters", "search_seconds")


def log_hparams(
    monitor: Monitor, config: Config, stage: str, digest: str, metrics: Mapping[str, float | None], step: int = 0
) -> None:
    """Logs a finished run's settings and final numbers.

    Args:
        monitor: The monitor of the run's folder.
        config: The run's configuration; settings of a section that the stage does not use are left blank.
        stage: "search", "retrain" or "run" (both).
        digest: The genotype's digest.
        metrics: Some of `test_accuracy`, `held_out_accuracy` (0..1), `parameters` (of the network, auxiliary head
            excluded) and `search_seconds` (wall-clock time).
        step: The step of the final numbers.
    """
    plain = config.to_dict()
    settings = flatten({section: plain[section] for section in _SECTIONS["run"]})
    unused = {name for name in settings if name.split(".")[0] not in _SECTIONS[stage]}
    about = {
        "cell": digest,
        "data": config.data.name,
        "method": config.search.method if "search" in _SECTIONS[stage] else "-",
        "seed": config.seed,
        "space": config.space,
        "stage": stage,
    }
    final = {f"final/{name}": metrics.get(name) for name in _METRICS}
    monitor.hparams(about | settings, final, step, unused, first=about)
