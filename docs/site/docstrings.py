"""Prepares docstrings for the API reference: their examples become blocks of code."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example:\n((?: {4}.*\n?|\n)+)", re.MULTILINE)


class Examples(griffe.Extension):
    """Turns every section `Example:` into a block of code; Markdown reads `>>>` as a quotation."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object once."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(match: re.Match[str]) -> str:
    code = textwrap.dedent(match.group(1)).strip("\n")
    return f"**Example**\n\n```{'pycon' if '>>> ' in code else 'python'}\n{code}\n```\n\n"
