"""The folder of a run: lock, configuration, checkpoints, numbers of every epoch; and their reader."""

from nas_moreau.lazy_exports import lazy_exports as _lazy_exports

__all__, __getattr__, __dir__ = _lazy_exports(
    __name__,
    {
        "DiskFull": "atomic",
        "EpochEnd": "columns",
        "Monitor": "monitor",
        "Progress": "progress",
        "RunFolder": "folder",
        "load_checkpoint": "checkpoint",
        "register_metric": "columns",
        "save_checkpoint": "checkpoint",
    },
)
