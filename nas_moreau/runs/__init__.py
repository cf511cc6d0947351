"""What a run leaves behind: its folder, checkpoints, numbers, drawings and report."""

from nas_moreau import _hand_on

__all__, __getattr__, __dir__ = _hand_on(
    __name__,
    {
        "RunFolder": "folder",
        "save_checkpoint": "checkpoint",
        "load_checkpoint": "checkpoint",
        "DiskFull": "atomic",
        "Monitor": "monitor",
        "Progress": "progress",
        "draw_genotype": "drawing",
        "draw_png": "drawing",
        "write_report": "report",
        "write_comparison": "several_page",
    },
)
