"""The flags of recipes/train.py, with every default in one place."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from timm.optim import list_optimizers
from timm.utils import ParseKwargs

from interp_zoo.training.flags import Flags
from interp_zoo.training.gradients import ERRORS
from interp_zoo.words import nearest

SWITCH = argparse.BooleanOptionalAction


class Keywords(ParseKwargs):
    """timm's name=value pairs, with an error for what is none."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Refuses what has no "="."""
        for value in values:
            if "=" not in value:
                raise ValueError(f'argument {option_string}: "{value}" must be name=value, such as drop_rate=0.1')
        super().__call__(parser, namespace, values, option_string)  # type: ignore[no-untyped-call]


def training_flags(configs: Path, description: str) -> Flags:
    """Every flag, with its default and unit. timm's train.py has most of them, by the same names.

    Args:
        configs: the folder of the configurations that --config knows by name.
        description: what --help begins with.
    """
    parser = Flags(configs, description=description)
    add = parser.add_argument
    add("--data-dir", type=Path, help="class folders (train/, validation/), a folder with labels.csv, or timm's root")
    add("--dataset", default="", help="timm's data set: hfds/NAME, torch/NAME, ... (folders)")
    add("--train-split", default="train", help="what is trained on (train)")
    add("--val-split", default="validation", help="what accuracy is measured on (validation)")
    add("--hold-out", type=float, help="measure on this share of the train split instead, such as 0.1")
    add("--class-map", default="", help="timm's file with the classes in order")
    add("--input-key", default="", help="timm's name of the column with the pictures")
    add("--target-key", default="", help="timm's name of the column with the labels")

    add("--model", help="a timm model")
    add("--pretrained", action=SWITCH, default=False, help="start from its pretrained weights (no)")
    add("--initial-checkpoint", help="start from this safetensors file")
    add("--backbone-pretrained", nargs="?", const=True, default=False, help="ca_*: the backbone's weights, or whose")
    add("--num-classes", type=int, help="classes (those of the data, else the model's)")
    add("--model-kwargs", nargs="*", default={}, action=Keywords, help="more for timm.create_model: drop_rate=0.1")
    add("--img-size", type=int, help="pixels (the model's)")
    add("--mean", type=float, nargs="+", help="of the pictures (the model's)")
    add("--std", type=float, nargs="+", help="of the pictures (the model's)")
    add("--crop-pct", type=float, help="share of the picture that is measured on (the model's)")
    add("--interpolation", default="", help="(the model's)")

    add("--freeze-backbone", action=SWITCH, default=False, help="ca_*: train the stream alone (no)")
    add("--hold-last", action=SWITCH, default=False, help="with --freeze-backbone: hold the last W, too (no)")
    add("--distill", type=float, default=0.0, help="with --freeze-backbone: share of the backbone's word, 0 to 1 (0)")
    add("--distill-temperature", type=float, default=1.0, help="(1)")
    add("--cache-features", action=SWITCH, default=False, help="with --freeze-backbone --no-aug: keep its maps (no)")

    add("--penalty", type=float, default=0.0, help="lambda of interpretable gradients (0: none)")
    add("--penalty-error", default="cosine", choices=ERRORS, help="(cosine)")
    add("--penalty-of", default="loss", choices=["loss", "logit"], help="what is differentiated (loss)")
    add("--penalty-detach", action=SWITCH, default=True, help="take the guided gradient for a constant (yes)")
    add("--penalty-every", type=int, default=1, help="penalise every k-th step, k times as much (1)")

    add("--batch-size", "-b", type=int, default=128, help="pictures a process and forward pass (128)")
    add("--validation-batch-size", type=int, help="(--batch-size)")
    add("--grad-accum-steps", type=int, default=1, help="forward passes a step (1)")
    add("--opt", default="sgd", help="timm's optimiser (sgd)")
    add("--opt-eps", type=float, help="(the optimiser's)")
    add("--opt-betas", type=float, nargs="+", help="(the optimiser's)")
    add("--momentum", type=float, default=0.9, help="(0.9)")
    add("--weight-decay", type=float, default=2e-5, help="(2e-5)")
    add("--layer-decay", type=float, help="of the learning rate, from layer to layer towards the input (none)")
    add("--clip-grad", type=float, help="(none)")
    add("--clip-mode", default="norm", choices=["norm", "value"], help="(norm)")
    add("--epochs", type=int, default=300, help="(300)")
    add("--sched", default="cosine", choices=["cosine", "tanh", "poly", "step", "multistep"], help="(cosine)")
    add("--sched-on-updates", action=SWITCH, default=False, help="change the rate at every step, not epoch (no)")
    add("--lr", type=float, default=0.05, help="learning rate (0.05)")
    add("--min-lr", type=float, default=0.0, help="(0)")
    add("--warmup-lr", type=float, default=1e-5, help="(1e-5)")
    add("--warmup-epochs", type=int, default=5, help="(5)")
    add("--warmup-prefix", action=SWITCH, default=False, help="warm up before the schedule, not within it (no)")
    add("--decay-milestones", type=int, nargs="+", default=[90, 180, 270], help="epochs, of multistep (90 180 270)")
    add("--decay-epochs", type=float, default=90, help="of step (90)")
    add("--decay-rate", type=float, default=0.1, help="(0.1)")
    add("--cooldown-epochs", type=int, default=0, help="(0)")

    add("--no-aug", action="store_true", help="no augmentation at all")
    add("--train-crop-mode", choices=["rrc", "rkrc", "rkrr"], help="timm's (rrc: a random resized crop)")
    add("--scale", type=float, nargs=2, default=[0.08, 1.0], help="areas of that crop (0.08 1)")
    add("--ratio", type=float, nargs=2, default=[3 / 4, 4 / 3], help="aspect ratios of that crop (3/4 4/3)")
    add("--crop-padding", type=int, help="instead: pad by so many pixels and crop at random (CIFAR: 4)")
    add("--rotation", type=float, default=0.0, help="degrees, either way (0)")
    add("--hflip", type=float, default=0.5, help="probability (0.5)")
    add("--vflip", type=float, default=0.0, help="probability (0)")
    add("--color-jitter", type=float, default=0.4, help="(0.4)")
    add("--aa", help="timm's AutoAugment or RandAugment: rand-m9-mstd0.5, ... (none)")
    add("--train-interpolation", default="random", help="(random)")
    add("--reprob", type=float, default=0.0, help="probability of random erasing (0)")
    add("--remode", default="pixel", choices=["const", "rand", "pixel"], help="(pixel)")
    add("--smoothing", type=float, default=0.1, help="of the labels (0.1)")
    add("--mixup", type=float, default=0.0, help="alpha (0: none)")
    add("--cutmix", type=float, default=0.0, help="alpha (0: none)")
    add("--mixup-prob", type=float, default=1.0, help="(1)")
    add("--mixup-switch-prob", type=float, default=0.5, help="from mixup to cutmix (0.5)")
    add("--mixup-mode", default="batch", choices=["batch", "pair", "elem"], help="(batch)")
    add("--mixup-off-epoch", type=int, default=0, help="no mixing from this epoch on (0: never)")
    add("--model-ema", action=SWITCH, default=False, help="average the weights (no)")
    add("--model-ema-decay", type=float, default=0.9998, help="(0.9998)")
    add("--model-ema-every", type=int, default=1, help="steps (1)")
    add("--model-ema-warmup", action=SWITCH, default=False, help="(no)")

    add("--output", type=Path, help="the folder for the results; that of a killed run to go on")
    add("--overwrite", action="store_true", help="delete another run in it")
    add(
        "--amp", nargs="?", const="bf16", choices=["no", "bf16", "fp16"], help="precision (as accelerate is configured)"
    )
    add("--channels-last", action=SWITCH, default=False, help="memory layout (no)")
    add("--seed", type=int, default=42, help="of weights, order, augmentation (42)")
    add("--workers", "-j", type=int, default=4, help="that load pictures, a process (4)")
    add("--checkpoint-minutes", type=float, default=10, help="minutes between checkpoints within an epoch (10)")
    add("--log-interval", type=int, default=50, help="steps (50)")
    trackers = [kind.value for kind in LoggerType if kind != LoggerType.ALL]
    add("--log-with", nargs="+", default=[], choices=trackers, help="accelerate's trackers (none)")
    add("--eval-explain", type=int, default=0, help="pictures on which Grad-CAM's AD, AG, AI are measured (0)")
    add("--eval-explain-interval", type=int, help="epochs from one such measurement to the next (a fifth of them)")
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Refuses what does not go together, before anything is loaded."""
    for name in ("model", "output"):
        if getattr(args, name) is None:
            raise ValueError(f"`{name}` is missing: give --{name}, or a --config that has it")
    for name in ("batch_size", "grad_accum_steps", "epochs", "log_interval", "model_ema_every"):
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` is {getattr(args, name)}, but must be at least 1")
    if args.seed < 0:
        raise ValueError(f"`seed` is {args.seed}, but must be 0 or more")
    if missing := sorted({*args.log_with} - {tracker.value for tracker in get_available_trackers()}):
        raise ImportError(f"`log_with` {missing[0]} needs its package, which is not installed")
    own = [str(name) for name in list_optimizers()]
    known = [*own, *(f"lookahead_{name}" for name in own)]
    if args.opt.lower() not in known:
        raise ValueError(f'`opt` "{args.opt}" is unknown to timm{nearest(args.opt.lower(), known)}')
    for name in ("hold_last", "distill", "cache_features"):
        if getattr(args, name) and not args.freeze_backbone:
            raise ValueError(f"`{name}` is for a stream on a frozen backbone: give --freeze-backbone, too")
    if args.freeze_backbone and not (args.backbone_pretrained or args.pretrained or args.initial_checkpoint):
        raise ValueError(
            "`freeze_backbone` needs a trained one: give --backbone-pretrained (timm's weights, or local-dir:RUN/best)"
        )
    if args.penalty and args.freeze_backbone:
        raise ValueError("`penalty` draws the network's gradients, but `freeze_backbone` leaves most of it: give one")
    if args.cache_features and not (args.no_aug and not args.mixup and not args.cutmix):
        raise ValueError("`cache_features` needs pictures that stay as they are: give --no-aug, and no mixing")
    if (args.mixup or args.cutmix) and args.batch_size % 2:
        raise ValueError(f"`batch_size` is {args.batch_size}, but must be even where pictures are mixed")
