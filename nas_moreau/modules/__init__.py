"""The search inside any `nn.Module`: choices in it, the user's loss and data. Torch is loaded by what needs it."""

from nas_moreau.lazy_exports import lazy_exports as _lazy_exports

__all__, __getattr__, __dir__ = _lazy_exports(
    __name__,
    {
        "Choice": "choice",
        "Depth": "joint_options",
        "Found": "found",
        "Front": "front",
        "Width": "joint_options",
        "pareto": "front_search",
        "search_module": "search",
        "zero": "joint_options",
    },
)
