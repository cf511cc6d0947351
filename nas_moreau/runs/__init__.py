"""What a run leaves behind: its folder, checkpoints, numbers, drawings and report."""

from nas_moreau import _hand_on

__all__, __getattr__, __dir__ = _hand_on(
    __name__,
    {
        "DiskFull": "atomic",
        "Monitor": "monitor",
        "Progress": "progress",
        "RunFolder": "folder",
        "load_checkpoint": "checkpoint",
        "save_checkpoint": "checkpoint",
    },
)
