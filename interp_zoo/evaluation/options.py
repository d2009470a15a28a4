"""The flags of recipes/evaluate.py, with every default in one place."""

from __future__ import annotations

import argparse
from pathlib import Path

from interp_zoo.evaluation import measures
from interp_zoo.metrics.functional.recognition import PROTOCOLS

TARGETS = ("label", "predicted", "least_likely")


def evaluation_flags(description: str) -> argparse.ArgumentParser:
    """Every flag, with its default and unit.

    Args:
        description: what --help begins with.
    """
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--model", nargs="+", required=True, help="timm models, with their pretrained weights")
    add("--checkpoint", type=Path, help="a safetensors file with the weights, for a single model")
    add(
        "--methods",
        default="quick",
        help="names with commas between, or quick, or all; with options: opticam:iterations=50:layer=layer3 (quick)",
    )
    add("--metrics", default="recognition,causal", help=f"names or groups ({', '.join(measures.GROUPS)}), or all")
    add("--data-dir", type=Path, help="a folder with labels.csv (file, class_index), one of pictures, or timm's root")
    add("--dataset", default="", help="timm's data set: folder, hfds/NAME, torch/NAME, wds/NAME, ... (a folder)")
    add("--split", default="validation", help="of the data set (validation)")
    add("--hold-out", type=float, help="only the share that training with the same option has left out (all)")
    add("--class-map", default="", help="timm's file with the classes in the model's order")
    add("--input-key", default="", help="timm's name of the column with the pictures")
    add("--target-key", default="", help="timm's name of the column with the labels")
    add("--boxes", type=Path, help="a folder of VOC or ImageNet XML files, a COCO json, or a csv")
    add("--target", default="label", choices=[*TARGETS, "all"], help="what is explained (label)")
    add("--limit", type=int, help="so many pictures, evenly spaced (all)")
    add("--batch-size", type=int, default=16, help="the most pictures, masked copies included, in a pass (16)")
    add("--amp", default="no", choices=["no", "bf16", "fp16"], help="precision of the network (no: the model's own)")
    add("--output", type=Path, required=True, help="the folder for the results; that of a killed run to go on")
    add("--overwrite", action="store_true", help="delete another run's results in it")
    add("--protocol", default="papers", choices=PROTOCOLS, help="whose average drop and increase (papers)")
    add("--step", type=int, help="pixels a step of insertion and deletion (those of 8 rows)")
    add("--blur-kernel", type=int, default=11, help="width of insertion's blur in pixels (11; CA-Stream's authors: 5)")
    add("--fill-pictures", type=int, help="on how many pictures, evenly spaced, the other fills are tried (all)")
    add("--sanity-pictures", type=int, default=16, help="on how many, evenly spaced, the sanity checks are made (16)")
    add("--seed", type=int, default=0, help="of noise fills and randomised weights (0)")
    return parser
