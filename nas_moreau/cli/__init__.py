"""The command line: `nas-moreau`, also `python -m nas_moreau`."""

from nas_moreau import _hand_on

__all__, __getattr__, __dir__ = _hand_on(__name__, {"build_parser": "entry", "main": "entry"})
