"""The command line: `nas-moreau`, also `python -m nas_moreau`."""

from nas_moreau.lazy_exports import lazy_exports as _lazy_exports

__all__, __getattr__, __dir__ = _lazy_exports(__name__, {"build_parser": "entry", "main": "entry"})
