"""Comparison of search methods over seeds under one protocol.

The package can be called: `nas_moreau.compare(...)` is `nas_moreau.compare.compare(...)`.
"""

from nas_moreau.lazy_exports import lazy_exports as _lazy_exports
from nas_moreau.lazy_exports import make_callable as _make_callable

__all__, __getattr__, __dir__ = _lazy_exports(
    __name__, {"Comparison": "protocol", "Protocol": "protocol", "compare": "protocol"}
)
_make_callable(__name__, "nas_moreau.compare.protocol")
