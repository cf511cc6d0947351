"""The search: bilevel methods on a supernet, and the derivation of a cell.

The package can be called: `nas_moreau.search(...)` is `nas_moreau.api.search(...)`, which gives a `Result`.
"""

from nas_moreau.lazy_exports import lazy_exports as _lazy_exports
from nas_moreau.lazy_exports import make_callable as _make_callable

__all__, __getattr__, __dir__ = _lazy_exports(
    __name__,
    {
        "Mixing": "supernet_problem",
        "Trained": "rules",
        "register_mixing": "mixing",
        "register_rule": "rules",
        "search": "stage",
    },
)
_make_callable(__name__, "nas_moreau.api")
