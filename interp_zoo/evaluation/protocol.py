"""What one must know of an evaluation to compare its figures with others', in words."""

from __future__ import annotations

from collections.abc import Sequence

from interp_zoo.evaluation.measures import MEASURES
from interp_zoo.evaluation.measuring import FILL_STEPS, STAGES, Settings


def describe(
    settings: Settings,
    *,
    data: str,
    target: str,
    fills: int,
    sanity: int,
    missing: Sequence[str],
    machine: str,
) -> dict[str, str]:
    """The protocol, text by text; of metrics that are not measured it says nothing.

    Args:
        settings: how everything is measured.
        data: what the pictures are.
        target: which target is explained, as the user asked for it.
        fills: on how many pictures other fills are tried.
        sanity: on how many pictures the sanity checks are made.
        missing: metrics that were asked for and cannot be measured.
        machine: what it ran on.
    """
    groups = {MEASURES[name].group for name in settings.metrics}
    facts = {"Data": data, "Target": {"all": "label, predicted and least likely class, each"}.get(target, target)}
    if "recognition" in groups:
        facts |= _recognition(settings.protocol)
    step = f"{settings.step:,} pixels" if settings.step else "8 rows of pixels"
    if "insertion" in settings.metrics:
        blur = f"{settings.blur_kernel} x {settings.blur_kernel} pixels, sigma {settings.blur_sigma:g}"
        facts["Insertion"] = f"from the blurred picture ({blur}), {step} a step"
    if "deletion" in settings.metrics:
        facts["Deletion"] = f"to the mean colour, {step} a step"
    if groups & {"causal", "fills"}:
        facts["Order"] = "by the map at the input's size; of equal pixels the upper, then the left one first"
    if "fills" in groups:
        facts["Other fills"] = f"in {FILL_STEPS} steps, on {fills} pictures"
    if "localization" in groups:
        facts["Localisation"] = (
            "all boxes of a picture, whatever their class, clipped to the input; a map's box is that of its largest "
            "part above its mean (BA: above each of 100 thresholds); it hits above an IoU of 0.5 (BA: from 0.5 on); SP "
            "has no tolerance, and blank maps miss"
        )
    if "sanity" in groups:
        facts["Sanity checks"] = f"on {sanity} pictures; weights are lost in {STAGES} stages from the output on"
    facts |= {
        "Precision": settings.amp or "as the model is",
        "Statistics": "means over pictures; 95 % intervals by bootstrap over pictures; differences to the best are "
        "paired, and not corrected for the choice of the best among many",
        "Seed": f"{settings.seed} (of noise and of randomised weights)",
        "Machine": f"{machine}, at most {settings.batch_size} pictures in the network at once",
    }
    return facts | ({"Not measured": ", ".join(missing)} if missing else {})


def _recognition(protocol: str) -> dict[str, str]:
    if protocol == "papers":
        return {
            "Mask": "the picture in [0, 1] times the map, then mean and std: black is what is masked out",
            "Score": "softmax probabilities",
        }
    return {
        "Mask": f"{protocol}'s: the normalised picture times the map: the mean colour is what is masked out",
        "Score": "logits for average drop and increase" if protocol == "torchcam" else "softmax probabilities",
    }
