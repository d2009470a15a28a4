"""The flags of a training, and its configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from conftest import assert_one_line
from timm.models import is_model

from interp_zoo.training.options import check_flags, training_flags
from interp_zoo.training.runs import claim

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"


def parsed(*argv: str, configs: Path = CONFIGS) -> dict[str, Any]:
    return vars(training_flags(configs, "").parse(argv))


def of_file(folder: Path, text: str | bytes, *argv: str) -> dict[str, Any]:
    file = folder / "mine.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return parsed("--config", str(file), *argv)


def fails(kind: type[Exception], message: str, *argv: str) -> None:
    with pytest.raises(kind, match=message) as e:
        parsed(*argv)
    assert_one_line(e.value)


def test_a_config_by_name_and_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("lr: 0.25")
    (tmp_path / "other.yml").write_text("lr: 0.75")
    assert parsed("--config", "mine", configs=tmp_path)["lr"] == 0.25
    assert parsed("-c", str(tmp_path / "other.yml"))["lr"] == 0.75
    assert parsed(f"--config={tmp_path / 'mine.yaml'}")["lr"] == 0.25
    assert parsed("--config", "finetune")["scale"] == [0.35, 1.0]
    assert parsed()["lr"] == 0.05


# As they stand in a file: a number of each kind, text, a path, switches, lists, null, flags with an optional value.
VALUES: list[tuple[str, str, Any]] = [
    ("lr: 1.0e-3", "lr", 1e-3),
    ("lr: 1e-3", "lr", 1e-3),  # which is text to YAML
    ("epochs: 7", "epochs", 7),
    ("rotation: 15", "rotation", 15.0),
    ("weight_decay: -0.5", "weight_decay", -0.5),
    ("model: 'local-dir:a b/c'", "model", "local-dir:a b/c"),
    ("dataset: --odd", "dataset", "--odd"),
    ("data_dir: a/b", "data_dir", Path("a/b")),
    ("channels_last: true", "channels_last", True),
    ("penalty_detach: false", "penalty_detach", False),
    ("no_aug: true", "no_aug", True),
    ("no_aug: false", "no_aug", False),
    ("backbone_pretrained: true", "backbone_pretrained", True),
    ("backbone_pretrained: false", "backbone_pretrained", False),
    ("backbone_pretrained: resnet18.a1_in1k", "backbone_pretrained", "resnet18.a1_in1k"),
    ("amp: fp16", "amp", "fp16"),
    ("amp: 'no'", "amp", "no"),
    ("decay_milestones: [3, 5]", "decay_milestones", [3, 5]),
    ("mean: [-0.5, 0, 1.5]", "mean", [-0.5, 0.0, 1.5]),
    ("log_with: [tensorboard, wandb]", "log_with", ["tensorboard", "wandb"]),
    ("log_with: tensorboard", "log_with", ["tensorboard"]),
    ("hold_out: null", "hold_out", None),
    ("color_jitter: null", "color_jitter", 0.4),  # the default
    ("model_kwargs: {a: 1, b: relu, c: null, d: [1, 2], e: true, f: 0.5, g: 'x=y'}", "model_kwargs", {}),
]


@pytest.mark.parametrize(("text", "key", "want"), VALUES)
def test_every_kind_of_value(tmp_path: Path, text: str, key: str, want: Any) -> None:
    if key == "model_kwargs":
        want = yaml.safe_load(text)[key]
    found = of_file(tmp_path, f"seed: 9\n{text}\nworkers: 3\n")
    assert found[key] == want
    assert type(found[key]) is type(want)
    assert (found["seed"], found["workers"]) == (9, 3)
    changed = {name for name, value in parsed().items() if found[name] != value}
    assert changed <= {"config", "seed", "workers", key}


def test_the_command_line_wins(tmp_path: Path) -> None:
    text = "lr: 0.1\nchannels_last: true\npenalty_detach: false\ndecay_milestones: [1, 2, 3]\nmodel_kwargs: {a: 1}"
    argv = ["--lr", "0.2", "--no-channels-last", "--penalty-detach", "--decay-milestones", "9", "--model-kwargs", "b=2"]
    found = of_file(tmp_path, text, *argv)
    want = {
        "lr": 0.2,
        "channels_last": False,
        "penalty_detach": True,
        "decay_milestones": [9],
        "model_kwargs": {"b": 2},
    }
    assert {key: found[key] for key in want} == want


def test_what_does_not_exist_is_told_with_what_is_near(tmp_path: Path) -> None:
    fails(ValueError, r'^"--batchsize" is no flag \(did you mean .*--batch-size', "--batchsize", "3")
    fails(ValueError, r'^"--epoch" is no flag \(did you mean --epochs', "--epoch", "3")  # no abbreviations
    fails(
        FileNotFoundError,
        r'^`config` "gr_resnet18" does not exist \(did you mean gr_resnet18_cifar100',
        "-c",
        "gr_resnet18",
    )
    fails(FileNotFoundError, r'^`config` ".*/none\.yaml" does not exist', "-c", str(tmp_path / "none.yaml"))
    for key, near in (("batch-size", "batch_size"), ("learning_rate", "decay_rate"), ("config", ""), ("help", "")):
        with pytest.raises(ValueError, match=rf'^`config` ".*" has the key "{key}", which is no flag.*{near}') as e:
            of_file(tmp_path, f"{key}: 3")
        assert_one_line(e.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr: fast", r"^argument --lr: invalid float value: 'fast'$"),
        ("lr: true", r"^argument --lr: expected one argument$"),
        ("lr: {a: 1}", r"^argument --lr: invalid float value: 'a=1'$"),
        ("epochs: 1.5", r"^argument --epochs: invalid int value: '1\.5'$"),
        ("scale: [0.1]", r"^argument --scale: expected 2 arguments$"),
        ("decay_milestones: [1, x]", r"^argument --decay-milestones: invalid int value: 'x'$"),
        ("penalty_error: cosin", r"^argument --penalty-error: invalid choice: 'cosin'"),
        ("amp: fp8", r"^argument --amp: invalid choice: 'fp8'"),
        ("pretrained: maybe", r"^argument --pretrained/--no-pretrained: ignored explicit argument 'maybe'$"),
        ("- lr", r'^`config` ".*mine\.yaml" must hold keys with values'),
        ("lr", r'^`config` ".*mine\.yaml" must hold keys with values'),
        ("lr: [", r'^`config` ".*mine\.yaml" is no YAML file: '),
        ("a: !!python/object/apply:os.getcwd []", r'^`config` ".*mine\.yaml" is no YAML file: .*could not determine'),
        (b"lr: \xff", r'^`config` ".*mine\.yaml" is no YAML file: '),
    ],
)
def test_what_is_wrong_in_a_file_is_told(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told) as e:
        of_file(tmp_path, text)
    assert_one_line(e.value)


@pytest.mark.parametrize("key", ["lr", "color_jitter", "smoothing", "model", "decay_milestones"])
def test_false_is_no_value_of_a_number_or_a_name(tmp_path: Path, key: str) -> None:
    """It must not mean the default: `color_jitter: false` would jitter."""
    with pytest.raises(ValueError, match=key.replace("_", ".")):
        of_file(tmp_path, f"{key}: false")


@pytest.mark.parametrize("config", [[], ["--config", "gr_resnet18_cifar100"], ["--config", "finetune", "--model", "m"]])
def test_the_arguments_that_a_run_writes_down_are_a_config(tmp_path: Path, config: list[str]) -> None:
    more = ["--output", str(tmp_path / "run"), "--lr", "1e-07", "--mean", "0.1", "-0.2", "0.3", "--no-penalty-detach"]
    args = parsed(*config, *more, "--model-kwargs", "drop_rate=0.1", "act_layer=relu", "--amp", "no")
    claim(tmp_path / "run", args, {})
    again = parsed("--config", str(tmp_path / "run" / "args.yaml"))
    assert {**again, "config": None} == {**args, "config": None}


def test_the_arguments_that_a_run_writes_down_delete_nothing(tmp_path: Path) -> None:
    """So that a run goes on by its own args.yaml, even one that took another's place."""
    claim(tmp_path / "run", parsed("--model", "m", "--output", str(tmp_path / "run"), "--overwrite"), {})
    assert not parsed("--config", str(tmp_path / "run" / "args.yaml"))["overwrite"]


PLAIN = {"epochs": 200, "batch_size": 128, "opt": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
PLAIN |= {"sched": "multistep", "decay_milestones": [60, 120, 160], "decay_rate": 0.2, "warmup_epochs": 0}
PLAIN |= {"crop_padding": 4, "rotation": 15.0, "hflip": 0.5, "color_jitter": 0.0, "smoothing": 0.0, "penalty": 0.0}
RESNET = {"epochs": 90, "opt": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "sched": "multistep"}
RESNET |= {
    "decay_milestones": [30, 60],
    "decay_rate": 0.1,
    "warmup_epochs": 0,
    "freeze_backbone": True,
    "smoothing": 0.0,
}
VIT = {"epochs": 90, "opt": "adamw", "lr": 9e-3, "weight_decay": 0.3, "sched": "cosine", "warmup_epochs": 10}
VIT |= {"mixup": 0.2, "cutmix": 1.0, "smoothing": 0.11, "freeze_backbone": True, "backbone_pretrained": True}
VIT |= {"model_ema": True, "model_ema_decay": 0.99998, "model_ema_every": 32, "amp": "fp16"}
# The authors' numbers, as far as they are known (methods.md, 2.4 and 3).
NUMBERS: dict[str, dict[str, Any]] = {
    "resnet18_cifar100": PLAIN | {"model": "resnet18_cifar"},
    "mobilenetv2_cifar100": PLAIN | {"model": "mobilenetv2_cifar"},
    "gr_resnet18_cifar100": PLAIN | {"model": "gr_resnet18_cifar", "penalty": 7.5e-3, "penalty_error": "cosine"},
    "gr_mobilenetv2_cifar100": PLAIN | {"model": "gr_mobilenetv2_cifar", "penalty": 1e-3, "penalty_error": "cosine"},
    "ca_resnet18_cifar100": {"model": "ca_resnet18_cifar", "freeze_backbone": True, "crop_padding": 4},
    "ca_resnet18_in1k": RESNET | {"model": "ca_resnet18", "backbone_pretrained": True, "color_jitter": 0.4},
    "ca_resnet50_in1k": RESNET | {"model": "ca_resnet50", "backbone_pretrained": True, "color_jitter": 0.4},
    "ca_convnext_small_in1k": VIT | {"model": "ca_convnext_small"},
    "ca_convnext_base_in1k": VIT | {"model": "ca_convnext_base"},
    "finetune": {"model": "resnet18", "pretrained": True, "hold_out": 0.1},
}


@pytest.mark.parametrize("name", sorted(file.stem for file in CONFIGS.glob("*.yaml")))
def test_configurations_hold_the_papers_numbers(name: str) -> None:
    needed = {"finetune": ["--model", "resnet18"], "ca_resnet18_cifar100": ["--backbone-pretrained", "local-dir:x"]}
    args = training_flags(CONFIGS, "").parse(["--config", name, "--output", "out", *needed.get(name, [])])
    check_flags(args)
    assert is_model(args.model)
    assert {key: getattr(args, key) for key in NUMBERS[name]} == NUMBERS[name]
    if name in needed:
        args = training_flags(CONFIGS, "").parse(["--config", name, "--output", "out"])
        with pytest.raises(ValueError, match=r"^`(model|freeze_backbone)` (is missing|needs a trained one)"):
            check_flags(args)
    if "cifar100" in name:
        cfg = timm.models.get_pretrained_cfg(args.model)
        assert (cfg.mean, cfg.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # type: ignore[union-attr]
        assert (args.val_split, args.hold_out, args.target_key) == ("test", 0.1, "fine_label")
