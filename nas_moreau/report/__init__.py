"""Reports of runs and comparisons as HTML pages of one file each."""

from nas_moreau.lazy_exports import lazy_exports as _lazy_exports

__all__, __getattr__, __dir__ = _lazy_exports(
    __name__,
    {
        "write_comparison": "comparison",
        "write_report": "run",
        "write_several_runs": "several_runs",
    },
)
