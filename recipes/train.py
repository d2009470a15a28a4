"""Train a CA-Stream on a frozen backbone, a network with interpretable gradients, or any timm model.

    accelerate launch recipes/train.py --config gr_resnet18_cifar100 --output runs/gr_resnet18

Works on one process or many. A run that was killed goes on from its last checkpoint when the same command is given
again; on the same machine, with as many processes, every later loss is what it would have been.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator, DataLoaderConfiguration, InitProcessGroupKwargs
from accelerate.utils import ProjectConfiguration, set_seed
from rich.console import Console
from timm.data import Mixup, create_transform, resolve_data_config
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import ModelEmaV3, distribute_bn
from torch.utils.data import DataLoader

from interp_zoo.evaluation.measuring import weights_hash
from interp_zoo.evaluation.samples import evenly
from interp_zoo.models.rectifiers import check_activations
from interp_zoo.training import networks, objectives, pictures, runs
from interp_zoo.training.checkpoints import Checkpoints
from interp_zoo.training.features import KeptMaps, Places
from interp_zoo.training.gradients import Penalty
from interp_zoo.training.options import check_flags, training_flags
from interp_zoo.training.splits import Splits, open_splits
from interp_zoo.training.watching import accuracy, recognition_by_gradcam


@dataclass
class Training:
    """All that takes part in a run."""

    args: argparse.Namespace
    accelerator: Accelerator
    data: Splits
    model: Any  # the timm model
    network: Any  # what accelerate made of it
    ema: ModelEmaV3 | None
    objective: objectives.Objective
    optimizer: Any
    scheduler: Any
    order: pictures.Epochs
    loader: Any
    val_loader: Any
    kept: KeptMaps | None
    mixup: Mixup | None

    @property
    def watched(self) -> dict[str, Any]:
        """The networks whose accuracy is measured and whose weights are written, by what their names end in."""
        return {"": self.model} | ({"_ema": self.ema.module} if self.ema else {})


def make_model(args: argparse.Namespace, data: Splits, accelerator: Accelerator) -> tuple[Any, dict[str, Any]]:
    """The network, and how it takes pictures."""
    set_seed(args.seed)
    with accelerator.main_process_first():  # which downloads weights; the others find them
        model: Any = networks.make_network(
            args.model,
            classes=args.num_classes or data.classes,
            pretrained=args.pretrained,
            initial_checkpoint=args.initial_checkpoint,
            backbone_pretrained=args.backbone_pretrained,
            **args.model_kwargs,
        )
    for part in (data.train, data.val):
        part.check_labels(model.num_classes)
    config = resolve_data_config(vars(args), model=model)
    if args.penalty:
        check_activations(model)
    if args.freeze_backbone:
        networks.freeze_backbone(model, hold_last=args.hold_last, distilled=bool(args.distill))
    networks.check_trained(model)
    networks.name_classes(model, data.train.class_names or ())
    networks.adapt(model, **config, num_classes=model.num_classes)
    return model.to(accelerator.device, memory_format=networks.memory_format(args.channels_last)), config


def make_objective(args: argparse.Namespace) -> objectives.Objective:
    """What is minimised."""
    criterion = objectives.cross_entropy(mixed=bool(args.mixup or args.cutmix), smoothing=args.smoothing)
    if args.penalty:
        how = Penalty(args.penalty, args.penalty_error, args.penalty_of, args.penalty_detach, args.penalty_every)
        return objectives.InterpretableGradients(criterion, how)
    if args.distill:
        return objectives.Distillation(criterion, args.distill, args.distill_temperature)
    return objectives.Plain(criterion)


def augmentation(args: argparse.Namespace, config: dict[str, Any]) -> pictures.Transform:
    """How training pictures are transformed."""
    same = ("no_aug", "train_crop_mode", "scale", "ratio", "crop_padding", "rotation", "hflip", "vflip")
    other = {"auto_augment": args.aa, "re_prob": args.reprob, "re_mode": args.remode}
    other |= {"color_jitter": args.color_jitter or None, "interpolation": args.train_interpolation}
    return pictures.training_transform(config, **{key: getattr(args, key) for key in same}, **other)


def assemble(args: argparse.Namespace, accelerator: Accelerator) -> Training:
    """Everything is looked at before anything is trained."""
    objective = make_objective(args)
    keys = {"class_map": args.class_map, "input_key": args.input_key, "target_key": args.target_key}
    data = open_splits(args.data_dir, args.dataset, args.train_split, args.val_split, args.hold_out, **keys)
    step = args.batch_size * args.grad_accum_steps * accelerator.num_processes
    order = pictures.Epochs(len(data.train_indices), step, args.seed)
    model, config = make_model(args, data, accelerator)
    transform = augmentation(args, config)

    ema = ModelEmaV3(model, args.model_ema_decay, use_warmup=args.model_ema_warmup) if args.model_ema else None
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(args))
    scheduler, _ = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=order.steps)
    facts = {"pictures a step": step, "weights": weights_hash(model), "timm": timm.__version__, **data.facts}
    if accelerator.is_main_process:  # the folder: this run's, or no other's
        runs.claim(args.output, vars(args), facts, overwrite=args.overwrite)
    accelerator.wait_for_everyone()

    kept = None
    train: Any = pictures.TrainingPictures(data.train, data.train_indices, transform, args.seed)
    if args.cache_features:
        still = pictures.EvaluationPictures(data.train, data.train_indices, transform)
        kept = KeptMaps(args.output / runs.FEATURES, model, still, accelerator, facts["train"] + facts["weights"])
        train = Places(data.train_labels)
    val = pictures.EvaluationPictures(data.val, data.val_indices, create_transform(**config))
    how = {"num_workers": args.workers, "pin_memory": accelerator.device.type == "cuda"}
    how["persistent_workers"] = args.workers > 0
    mixup = None
    if args.mixup or args.cutmix:
        mix = (args.mixup, args.cutmix, None, args.mixup_prob, args.mixup_switch_prob, args.mixup_mode)
        mixup = Mixup(*mix, label_smoothing=args.smoothing, num_classes=model.num_classes)

    network, optimizer, loader, val_loader = accelerator.prepare(
        objectives.StreamTraining(model) if args.freeze_backbone else model,
        optimizer,
        DataLoader(train, args.batch_size, sampler=order, drop_last=True, **how),
        DataLoader(val, args.validation_batch_size or args.batch_size, **how),
    )
    made = (args, accelerator, data, model, network, ema, objective, optimizer, scheduler)
    return Training(*made, order, loader, val_loader, kept, mixup)


def train_epoch(t: Training, at: dict[str, Any], journal: runs.Journal, console: Console, save: Any) -> None:
    """The steps of an epoch that are not done yet."""
    args, accelerator = t.args, t.accelerator
    t.network.train()
    t.order.start_at(at["epoch"], at["done"])
    if t.mixup and args.mixup_off_epoch:
        t.mixup.mixup_enabled = at["epoch"] < args.mixup_off_epoch
    began, saved, first = time.monotonic(), time.monotonic(), at["done"]
    parts: list[torch.Tensor] = []
    for x, y in t.loader:
        # What is drawn here (mixing, dropout) depends on the place in the run, not on what was drawn before.
        set_seed(pictures.number(args.seed, at["step"], len(parts), accelerator.process_index))
        with accelerator.accumulate(t.network):
            x = t.kept.take(x) if t.kept else x.contiguous(memory_format=networks.memory_format(args.channels_last))
            x, y = t.mixup(x, y) if t.mixup else (x, y)
            scale = accelerator.scaler.get_scale() if args.penalty and accelerator.scaler else 1.0
            total, *found = t.objective(t.network, x, y, step=at["step"], scale=scale)
            accelerator.backward(total)
            if args.clip_grad and accelerator.sync_gradients:
                clip = accelerator.clip_grad_norm_ if args.clip_mode == "norm" else accelerator.clip_grad_value_
                clip(t.model.parameters(), args.clip_grad)
            t.optimizer.step()
            t.optimizer.zero_grad()
        parts.append(torch.stack([part.detach().float() for part in found if part is not None]))
        if not accelerator.sync_gradients:
            continue
        rate, means = t.optimizer.param_groups[0]["lr"], accelerator.reduce(torch.stack(parts).mean(0), "mean")
        at["step"], at["done"], parts = at["step"] + 1, at["done"] + 1, []
        journal.step(at["step"], at["epoch"], rate, *means)
        t.scheduler.step_update(at["step"])
        if t.ema and at["step"] % args.model_ema_every == 0:
            t.ema.update(t.model, step=at["step"])
        ends = at["done"] == t.order.steps
        if not ends and at["done"] % args.log_interval:
            continue
        loss = journal.flush()
        pace = (at["done"] - first) / (time.monotonic() - began)
        left = timedelta(seconds=round((t.order.steps * (args.epochs - at["epoch"]) - at["done"]) / pace))
        accelerator.log({"loss": loss, "lr": rate}, step=at["step"])
        where = f"epoch {at['epoch'] + 1} of {args.epochs}, step {at['done']} of {t.order.steps}"
        console.print(f"{where}: loss {loss:.4f}, lr {rate:.3g}, {pace * t.order.step:,.0f} pictures/s, {left} left")
        if not ends and time.monotonic() - saved >= 60 * args.checkpoint_minutes:
            accelerator.set_trigger()
        if accelerator.check_trigger():  # one process' clock decides for all
            save()
            saved = time.monotonic()


def measure(t: Training, at: dict[str, Any], row: dict[str, Any], command: str) -> None:
    """Adds to a row what the networks are worth now, and writes their weights."""
    args, accelerator = t.args, t.accelerator
    for which, network in t.watched.items():
        if accelerator.num_processes > 1:
            distribute_bn(network, accelerator.num_processes)  # the main process' statistics, which checkpoints hold
        found = accuracy(network.eval(), t.val_loader, t.model.num_classes, accelerator)
        row |= {f"eval{which}_{what}": value for what, value in found.items()}
        better = found["top-1"] > at["best"].get(which, -1.0)
        at["best"][which] = max(found["top-1"], at["best"].get(which, -1.0))
        about: dict[str, Any] = {
            "command": command,
            "dataset": t.data.name,
            "split": t.data.measured,
            "accuracy": found,
        }
        for folder in ("last", *(["best"] if better else [])):
            if accelerator.is_main_process:
                runs.save_weights(args.output / f"{folder}{which}", network, **about)
    every = args.eval_explain_interval or max(1, args.epochs // 5)
    if args.eval_explain and (args.epochs - row["epoch"]) % every == 0:
        some = evenly(t.data.val_indices, args.eval_explain)
        row |= recognition_by_gradcam(t.model, t.data.val, some, accelerator, args.batch_size)


def run(args: argparse.Namespace, accelerator: Accelerator, console: Console) -> None:
    """Trains from the start, or from where it was."""
    t = assemble(args, accelerator)
    columns = ["epoch", "step", "lr", "loss", t.objective.extra or "extra", "seconds"]
    columns += [f"eval{which}_{what}" for which in t.watched for what in ("top-1", "top-5", "loss")]
    columns += ["backbone_top-1"] * args.freeze_backbone + ["AD", "AG", "AI"] * bool(args.eval_explain)
    journal = runs.Journal(args.output, columns, writes=accelerator.is_main_process)
    checkpoints, average = Checkpoints(args.output / runs.CHECKPOINTS), t.ema and t.ema.module
    command = shlex.join(["accelerate", "launch", "recipes/train.py", *sys.argv[1:]])

    at = checkpoints.load(accelerator, average) or {"step": 0, "epoch": 0, "done": 0, "best": {}, "backbone": None}
    journal.rewind(at["step"], at["epoch"], at.get("sums"))
    accelerator.wait_for_everyone()
    if at["epoch"] >= args.epochs:
        console.print(f"all {args.epochs} epochs are done in {args.output}", markup=False)
        return
    if at["step"]:
        console.print(f"going on in {args.output} after step {at['step']:,}, epoch {at['epoch']}", markup=False)
    elif args.freeze_backbone:
        nets = (t.model.backbone, t.model)
        first = [accuracy(net.eval(), t.val_loader, t.model.num_classes, accelerator)["top-1"] for net in nets]
        at["backbone"] = first[0]
        console.print(f"top-1 of the backbone {first[0]:.2f}, with the stream as it starts {first[1]:.2f}")
    accelerator.init_trackers("train", config={k: str(v) for k, v in vars(args).items()})

    def save() -> None:
        checkpoints.save(accelerator, at | {"sums": journal.sums}, average)

    while at["epoch"] < args.epochs:
        began, rate = time.monotonic(), t.optimizer.param_groups[0]["lr"]
        train_epoch(t, at, journal, console, save)
        at |= {"epoch": at["epoch"] + 1, "done": 0}
        row = dict(zip(columns, (at["epoch"], at["step"], rate, *journal.means()), strict=False))
        row |= {"seconds": round(time.monotonic() - began, 1), "backbone_top-1": at["backbone"]}
        measure(t, at, row, command)
        t.scheduler.step(at["epoch"])
        journal.epoch(row)
        save()
        accelerator.log({k: v for k, v in row.items() if isinstance(v, float)}, step=at["step"])
        told = ", ".join(f"{k} {v:.2f}" for k, v in row.items() if isinstance(v, float) and k not in ("lr", "seconds"))
        console.print(f"epoch {at['epoch']} of {args.epochs}: {told}")
    console.print(f"done: {args.output}/summary.csv; local-dir:{args.output}/best is a name for timm", markup=False)


def main(argv: list[str] | None = None) -> None:
    """Runs, and says in one line what is wrong."""
    rank, failed = "", None
    try:
        flags = training_flags(Path(__file__).parent / "configs", (__doc__ or "").partition("\n")[0])
        args = flags.parse(argv or sys.argv[1:])
        check_flags(args)
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else accelerate takes torchrun's processes for lonely ones
            mixed_precision=args.amp,
            gradient_accumulation_steps=args.grad_accum_steps,
            dataloader_config=DataLoaderConfiguration(even_batches=False),  # each picture is measured once
            log_with=args.log_with or None,
            project_config=ProjectConfiguration(logging_dir=args.output and str(args.output / runs.LOGS)),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
        )
        rank = "" if accelerator.is_main_process else f" in process {accelerator.process_index}"
        run(args, accelerator, Console(quiet=bool(rank), soft_wrap=True))
        accelerator.end_training()
    except KeyboardInterrupt:
        failed = "interrupted: the same command goes on from the last checkpoint"
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        failed = f"error{rank}: {' '.join(str(error).split())}"
    if failed:
        print(failed, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
