"""Help with words that users misspell."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence


def nearest(word: str, known: Sequence[str] | Mapping[str, str], n: int = 3) -> str:
    """' (did you mean ...?)' with the nearest known words, or with what they stand for; '' if none is near."""
    near = difflib.get_close_matches(word, list(known), n=n, cutoff=0.5)
    if isinstance(known, Mapping):
        near = list(dict.fromkeys(known[close] for close in near))
    return f" (did you mean {', '.join(near)}?)" if near else ""
