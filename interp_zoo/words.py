"""Help with words that users misspell."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(word: str, known: Sequence[str], n: int = 3) -> str:
    """' (did you mean ...?)' with the nearest known words, or '' if none is near."""
    near = difflib.get_close_matches(word, known, n=n, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else ""
