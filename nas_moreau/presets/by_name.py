"""The presets' texts by their names; `nas_moreau.config` reads them. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from nas_moreau.errors import InputError, did_you_mean


def preset_names() -> list[str]:
    """Returns the names of the presets that come with the package."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def preset_text(name: str) -> str:
    """Returns a preset's YAML text.

    Raises:
        InputError: There is no such preset.
    """
    if name not in preset_names():
        raise InputError(f"There is no preset '{name}'.", did_you_mean(name, preset_names()))
    return Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")
