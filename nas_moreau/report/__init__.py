"""Reports of runs as HTML pages of one file each."""

from nas_moreau import _lazy_exports

__all__, __getattr__, __dir__ = _lazy_exports(__name__, {"write_comparison": "several_runs", "write_report": "run"})
