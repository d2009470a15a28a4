"""The logits in what a classifier returns."""

from __future__ import annotations

from torch import Tensor

_SEGMENTER = " (segmenters are out of scope here: see captum)"


def logits_of(output: object) -> Tensor:
    """The logits in a classifier's output: a tensor, or the `logits` of an output object or dict."""
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"`model` returns {_kind(output)}, not logits (B, classes): wrap it so that it returns the logits alone "
            "(detectors are out of scope here, see xaitk-saliency; features_only=True gives none)"
        )
    if logits.ndim != 2:
        raise ValueError(
            f"`model` returns a tensor of shape {tuple(logits.shape)}, not logits (B, classes): "
            f"wrap it so that it returns one row of logits a picture{_SEGMENTER if logits.ndim == 4 else ''}"
        )
    return logits


def _kind(output: object) -> str:
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    if isinstance(output, dict):
        return f"a dict of {', '.join(map(str, output))}"
    return f"a {type(output).__name__}"
