"""What a run leaves behind: its folder, checkpoints, numbers, drawings and report."""

from nas_moreau import _hand_on

__all__, __getattr__, __dir__ = _hand_on(
    __name__,
    {
        "DiskFull": "atomic",
        "Monitor": "monitor",
        "Progress": "progress",
        "RunFolder": "folder",
        "draw_genotype": "drawing",
        "draw_png": "drawing",
        "load_checkpoint": "checkpoint",
        "save_checkpoint": "checkpoint",
        "write_comparison": "several_page",
        "write_report": "report",
    },
)
