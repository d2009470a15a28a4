"""The parts of a data set, the network on them, its frozen backbone's maps, and what its stream is trained with."""

from __future__ import annotations

import copy
import random
import shutil
from collections import Counter, namedtuple
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import assert_one_line, lively, lively_ca, saved, texture
from hypothesis import given, settings, strategies as st
from timm.data import create_transform
from torch import Tensor, nn

from interp_zoo.evaluation.data import open_data
from interp_zoo.evaluation.samples import evenly, hold_out
from interp_zoo.hub import write_weights
from interp_zoo.models import CAStream
from interp_zoo.training.features import KeptMaps, Places
from interp_zoo.training.networks import adapt, check_trained, freeze_backbone, make_network, name_classes
from interp_zoo.training.objectives import Distillation, StreamTraining, cross_entropy
from interp_zoo.training.pictures import EvaluationPictures
from interp_zoo.training.splits import Splits, open_splits


def test_evenly() -> None:
    for total, some, want in ((10, 3, [0, 3, 6]), (10, 99, list(range(10))), (3, 1, [0]), (3, 0, []), (0, 3, [])):
        assert evenly([5 * i + 1 for i in range(total)], some) == [5 * i + 1 for i in want]


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=9), share=st.floats(0.01, 0.99), shuffle=st.integers(0, 99)
)
def test_held_out_pictures_are_the_same_share_of_each_class(sizes: list[int], share: float, shuffle: int) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    random.Random(shuffle).shuffle(labels)
    if round(share * len(labels)) in (0, len(labels)):
        with pytest.raises(ValueError, match=rf"^`hold_out` is {share}, which of {len(labels)} pictures leaves one"):
            hold_out(labels, share)
        return
    kept, held = hold_out(labels, share)
    assert [kept, held, sorted(kept + held)] == [sorted(kept), sorted(held), list(range(len(labels)))]
    assert len(held) == round(share * len(labels))
    of_class = Counter(labels[index] for index in held)
    assert all(abs(of_class[label] - share * size) <= 1 + 1e-9 for label, size in enumerate(sizes))
    np.random.seed(shuffle)
    assert hold_out(labels, share) == (kept, held)


def test_held_out_pictures_are_drawn() -> None:
    """Not the first or the last of each class, which may have been taken together; and names do as classes, too."""
    labels = [*"a" * 50, *"b" * 50]
    _, held = hold_out(labels, 0.2)
    assert 0 < len({*held} & {*range(25)}) < 10
    assert hold_out([0 if label == "a" else 1 for label in labels], 0.2)[1] == held
    assert {b - a for a, b in pairwise(held)} != {5}  # nor every fifth


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_shares_outside_of_0_to_1_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"^`hold_out` is (0.0|1.0|-0.1|1.5|nan), but must be between 0 and 1") as e:
        hold_out([0, 0, 1, 1], share)
    assert_one_line(e.value)


def class_folders(root: Path, classes: str = "abc", each: int = 2, seed: int = 0) -> Path:
    for c in classes:
        for i in range(each):
            file = root / f"class_{c}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            texture((20, 24), seed=seed + 10 * ord(c) + i).save(file)
    return root


def with_labels(root: Path, labels: list[int], seed: int = 0) -> Path:
    root.mkdir(parents=True)
    for i, _ in enumerate(labels):
        texture((20, 24), seed=seed + i).save(root / f"{i}.png")
    (root / "labels.csv").write_text("file,class_index\n" + "".join(f"{i}.png,{c}\n" for i, c in enumerate(labels)))
    return root


def opened(root: Path, held: float | None = None, **splits: str) -> Splits:
    return open_splits(root, "", **{"train_split": "train", "val_split": "validation"} | splits, held=held)


@pytest.mark.parametrize("name", ["validation", "val", "valid", "eval"])
def test_two_folders(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path / "set" / "train", each=3)
    class_folders(tmp_path / "set" / name, seed=5)
    data = opened(tmp_path / "set")
    assert (data.train_indices, data.val_indices) == (list(range(9)), list(range(6)))
    assert data.train_labels == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (data.classes, data.train.class_names) == (3, ["class_a", "class_b", "class_c"])
    assert (data.name, data.measured) == ("set", "validation")
    assert list(data.facts.values()) == [data.train.fingerprint, data.val.fingerprint]


def test_a_share_of_the_train_split_is_held_out(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", each=10)
    data = opened(tmp_path, held=0.2)
    assert (data.train_indices, data.val_indices) == hold_out([0] * 10 + [1] * 10 + [2] * 10, 0.2)
    assert Counter(index // 10 for index in data.val_indices) == {0: 2, 1: 2, 2: 2}
    assert data.train_labels == [index // 10 for index in data.train_indices]
    assert data.measured == "0.2 of train"
    with pytest.raises(ValueError, match=r"^`hold_out` is 0\.01, which of 30 pictures leaves one part empty"):
        opened(tmp_path, held=0.01)


def test_labels_csv(tmp_path: Path) -> None:
    """Its numbers are the model's: no classes of the data's own."""
    with_labels(tmp_path / "one", [7, 0, 7, 3])
    data = opened(tmp_path / "one", held=0.5)
    assert data.classes is None
    assert data.train_labels == [[7, 0, 7, 3][index] for index in data.train_indices]
    with_labels(tmp_path / "two" / "train", [7, 0, 7, 3])
    with_labels(tmp_path / "two" / "val", [0, 7], seed=9)
    assert opened(tmp_path / "two").train_labels == [7, 0, 7, 3]


def test_the_same_pictures_twice_are_refused(tmp_path: Path) -> None:
    with_labels(tmp_path / "csv", [0, 1])
    class_folders(tmp_path / "folders")
    for name in ("csv", "folders"):  # without train/ and validation/ below
        with pytest.raises(
            ValueError, match=r'^`val_split` "validation" is the same pictures as `train_.*--hold-out'
        ) as e:
            opened(tmp_path / name)
        assert_one_line(e.value)
    class_folders(tmp_path / "two" / "train")
    with pytest.raises(ValueError, match=r'^`val_split` "train" is the same pictures as `train_split` "train"'):
        opened(tmp_path / "two", val_split="train")


def test_other_classes_are_refused(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", "abc")
    class_folders(tmp_path / "val", "ac")
    with pytest.raises(ValueError, match=r'^`val_split` "validation" numbers other classes than .* \(class_b\)') as e:
        opened(tmp_path)
    assert_one_line(e.value)
    (tmp_path / "classes.txt").write_text("class_c\nclass_b\nclass_a\n")
    data = open_splits(tmp_path, "", "train", "val", None, class_map=str(tmp_path / "classes.txt"))
    assert (data.train_labels, data.classes) == ([2, 2, 1, 1, 0, 0], None)


def test_parts_that_cannot_be_opened_are_told(tmp_path: Path) -> None:
    def fails(kind: type[Exception], message: str, root: Path, **kwargs: Any) -> None:
        with pytest.raises(kind, match=message) as e:
            opened(root, **kwargs)
        assert_one_line(e.value)

    class_folders(tmp_path / "train")
    fails(
        ValueError, r'^`val_split` "test": `split` "test" is not in .*, which holds train', tmp_path, val_split="test"
    )
    fails(ValueError, r'^`train_split` "training ": `split` "training "', tmp_path, train_split="training ")
    (tmp_path / "val" / "class_a").mkdir(parents=True)
    fails(ValueError, r'^`val_split` "validation": `dataset` "" in .* cannot be opened: Found 0 images', tmp_path)
    fails(FileNotFoundError, r'^`data_dir` ".*none" does not exist', tmp_path / "none")
    (with_labels(tmp_path / "flat", [0, 1]) / "labels.csv").unlink()
    told = r'^`train_split` "train" has no labels: give class folders, or a labels\.csv$'
    fails(ValueError, told, tmp_path / "flat")
    fails(ValueError, told, tmp_path / "flat", held=0.5)


@pytest.mark.filterwarnings("ignore")  # the package's own
def test_streams_have_no_order_to_draw(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    texture((8, 8)).save(tmp_path / "a.png")
    (tmp_path / "cifar").mkdir()
    made = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")] * 6, "label": [0, 1] * 3}, features)
    made.to_parquet(str(tmp_path / "cifar" / "train-00000.parquet"))
    data = open_splits(tmp_path / "cache", f"hfds/{tmp_path}/cifar", "train", "test", 1 / 3)
    assert (data.name, data.classes) == ("cifar", 2)
    assert Counter(data.train_labels) == {0: 2, 1: 2}
    with pytest.raises(ValueError, match=r'^`dataset` "hfids/.*" is a stream, without an order to draw'):
        open_splits(tmp_path / "cache", f"hfids/{tmp_path}/cifar", "train", "test", 0.5)


def test_networks_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'^`model` "resnet1" is unknown to timm \(did you mean .*resnet18'):
        make_network("resnet1", classes=4)
    file = str(saved("test_resnet", tmp_path, num_classes=6))
    starts: list[dict[str, Any]] = [
        {"pretrained": True},
        {"initial_checkpoint": file},
        {"backbone_pretrained": True},
    ]
    for one in starts:
        for other in starts:
            if one != other:
                with pytest.raises(
                    ValueError, match=r"^`pretrained`, `initial_checkpoint` and `backbone_pretrained` ex"
                ):
                    make_network("ca_resnet18", classes=4, **one, **other)
    with pytest.raises(ValueError, match=r"^`initial_checkpoint` .* has 6 classes, but the data has 4: give .*--pre"):
        make_network("test_resnet", classes=4, initial_checkpoint=file)
    with pytest.raises(ValueError, match=r'^`backbone_pretrained` is for CA-Streams, but the model is "test_resnet"'):
        make_network("test_resnet", classes=4, backbone_pretrained=True)


def test_networks_start_as_they_are_told(tmp_path: Path) -> None:
    file = saved("test_resnet", tmp_path, seed=3, num_classes=6)
    state = lively("test_resnet", 3, num_classes=6).state_dict()
    found = make_network("test_resnet", classes=6, initial_checkpoint=str(file)).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    write_weights(lively("test_resnet", 3, num_classes=6), tmp_path / "run")
    torch.manual_seed(0)
    model: Any = make_network(f"local-dir:{tmp_path / 'run'}", classes=4, pretrained=True)
    assert model.fc.weight.shape[0] == model.num_classes == 4
    assert torch.equal(model.conv1[0].weight, state["conv1.0.weight"])
    plain: Any = make_network("test_resnet", classes=None, drop_rate=0.25)
    assert (plain.num_classes, plain.drop_rate) == (1000, 0.25)


@pytest.mark.parametrize("names", [["owl", "fox", "elk"], ["n01440764", "n01443537", "n01484850"]])
def test_class_names_go_with_the_weights(tmp_path: Path, names: list[str]) -> None:
    model: Any = make_network("test_resnet", classes=3)
    name_classes(model, names)
    adapt(model, input_size=(3, 64, 64), num_classes=3)
    assert timm.create_model("test_resnet").pretrained_cfg["input_size"] == (3, 160, 160)  # type: ignore[index]
    write_weights(model, tmp_path / "run")
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    assert again.pretrained_cfg["input_size"] == (3, 64, 64)
    assert list(again.pretrained_cfg.get("label_names") or ()) == (names if "owl" in names else [])
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_names_that_are_known_keep_their_descriptions() -> None:
    model: Any = timm.create_model("resnet18_cifar")
    known = model.pretrained_cfg["label_names"]
    name_classes(model, list(known))
    assert model.pretrained_cfg["label_descriptions"]["maple_tree"] == "maple tree"
    name_classes(model, [])
    assert model.pretrained_cfg["label_names"] == known
    name_classes(model, [*known[1:], "owl"])
    assert model.pretrained_cfg["label_descriptions"] is None


def trained(model: nn.Module) -> set[str]:
    """The parts of a network that are trained."""
    return {name.rpartition(".")[0] for name, p in model.named_parameters() if p.requires_grad}


def test_a_frozen_backbones_new_classifier_is_trained(tmp_path: Path) -> None:
    stream = {"stream", *(f"stream.blocks.{i}.proj" for i in range(5))}
    write_weights(lively("resnet18_cifar", num_classes=7), tmp_path / "seven")
    source = f"local-dir:{tmp_path / 'seven'}"
    for classes, hold, want in ((7, False, stream), (4, False, {*stream, "backbone.fc"}), (7, True, stream)):
        model = make_network("ca_resnet18_cifar", classes=classes, backbone_pretrained=source)
        assert freeze_backbone(model, hold_last=hold) is model
        assert trained(model) == want - ({"stream.blocks.4.proj"} if hold else set())
        assert check_trained(model) == sum(p.numel() for p in model.parameters() if p.requires_grad)
        fc: Any = model.get_submodule("backbone.fc")
        assert fc.out_features == classes
        assert not model.train().get_submodule("backbone").training


def test_a_checkpoints_classifier_is_frozen(tmp_path: Path) -> None:
    """It is as trained as the rest, whatever number of classes the architecture has."""
    file = saved("ca_resnet18_cifar", tmp_path, num_classes=4)
    model = make_network("ca_resnet18_cifar", classes=4, initial_checkpoint=str(file))
    freeze_backbone(model)
    assert "backbone.fc" not in trained(model)


def test_what_cannot_be_trained_is_told(tiny_cnn: nn.Module, tiny_ca: CAStream) -> None:
    with pytest.raises(ValueError, match=r'^`freeze_backbone` is for CA-Streams, but the model is a ResNet: .*"ca_"'):
        freeze_backbone(tiny_cnn)
    with pytest.raises(ValueError, match=r"^`model` is a CAStream of which everything is frozen: nothing is to be"):
        check_trained(tiny_ca.requires_grad_(False))
    next(iter(tiny_ca.parameters())).requires_grad_()
    assert check_trained(tiny_ca) == next(iter(tiny_ca.parameters())).numel()


@pytest.fixture
def accelerator(request: pytest.FixtureRequest) -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision=getattr(request, "param", "no"))
    AcceleratorState._reset_state(reset_partial_state=True)


def shown(root: Path, size: int = 64) -> EvaluationPictures:
    data = open_data(root if root.is_dir() else with_labels(root, [0, 1, 2] * 23))
    return EvaluationPictures(data, data.chosen[2:], create_transform(size, crop_pct=1.0))


@pytest.mark.parametrize("accelerator", ["no", "bf16"], indirect=True)
def test_kept_maps_are_the_backbones(tmp_path: Path, tiny_ca: CAStream, accelerator: Accelerator) -> None:
    pictures = shown(tmp_path / "pictures")
    kept = KeptMaps(tmp_path / "maps", tiny_ca, pictures, accelerator, "mine")
    places = torch.tensor([66, 0, 64, 3])  # of two batches
    with torch.no_grad(), accelerator.autocast():
        want = tiny_ca.maps(torch.stack([pictures[int(place)][0] for place in places]))
    found = kept.take(places)
    assert [a.dtype for a in found] == [a.dtype for a in want]
    assert (found[1].dtype == torch.bfloat16) == (accelerator.mixed_precision == "bf16")
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if a.dtype == torch.bfloat16 else 1e-5, atol=1e-4)
    assert Places([3, 1, 2])[9, 2] == (2, 2)


def test_kept_maps_are_computed_once(
    tmp_path: Path, tiny_ca: CAStream, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(tiny_ca, "maps", lambda x: seen.append(len(x)) or CAStream.maps(tiny_ca, x))  # type: ignore[func-returns-value]
    first = KeptMaps(tmp_path / "maps", tiny_ca, shown(tmp_path / "p"), accelerator, "mine").take(torch.arange(67))
    assert seen == [1, 64, 3]
    again = KeptMaps(tmp_path / "maps", tiny_ca, shown(tmp_path / "p"), accelerator, "mine").take(torch.arange(67))
    assert seen == [1, 64, 3, 1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for identity, size in (("another", 64), ("another", 32)):  # other weights or pictures; another size
        KeptMaps(tmp_path / "maps", tiny_ca, shown(tmp_path / "p", size), accelerator, identity)
        assert seen[-3:] == [1, 64, 3]
    assert len(seen) == 10
    (tmp_path / "maps" / "done.json").unlink()  # as a run that was killed leaves them
    KeptMaps(tmp_path / "maps", tiny_ca, shown(tmp_path / "p", 32), accelerator, "another")
    assert len(seen) == 13


def test_kept_maps_need_room_and_pictures(
    tmp_path: Path, tiny_ca: CAStream, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = shown(tmp_path / "pictures")
    need = 67 * sum(4 * a.numel() for a in tiny_ca.maps(pictures[0][0][None]))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(int(need / 0.9) - 100))
    with pytest.raises(ValueError, match=r"^`cache_features` needs .* GB for 67 pictures, but .* leave it out$") as e:
        KeptMaps(tmp_path / "maps", tiny_ca, pictures, accelerator, "mine")
    assert_one_line(e.value)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(int(need / 0.9) + 100))
    KeptMaps(tmp_path / "maps", tiny_ca, pictures, accelerator, "mine")
    (tmp_path / "pictures" / "66.png").write_bytes(b"nothing")
    for _ in range(2):  # and what was begun is not taken for done
        with pytest.raises(ValueError, match=r"^`cache_features`: a picture cannot be read \(see above\): take it out"):
            KeptMaps(tmp_path / "maps", tiny_ca, shown(tmp_path / "pictures"), accelerator, "other")


@pytest.mark.parametrize(("share", "temperature"), [(0.3, 1.0), (0.8, 4.0), (1.0, 0.5)])
@pytest.mark.parametrize("mixed", [False, True])
def test_distillation_is_its_formula(share: float, temperature: float, mixed: bool, batch: Tensor) -> None:
    model = lively_ca(num_classes=10).freeze_backbone().train()
    target = torch.rand(3, 10, generator=torch.Generator().manual_seed(0)).softmax(1) if mixed else torch.arange(3)
    criterion = cross_entropy(mixed=mixed, smoothing=0)
    network = StreamTraining(model)
    total, loss, distance = Distillation(criterion, share, temperature)(network, batch, target, step=0, scale=1.0)
    twin = copy.deepcopy(model).double().eval()
    ours, its = (f(batch.double()) for f in (twin, twin.backbone))
    shares = target.double() if mixed else nn.functional.one_hot(target, 10)
    want_loss = -(shares * ours.log_softmax(1)).sum(1).mean()
    p, q = (its / temperature).softmax(1), (ours / temperature).softmax(1)
    want_distance = temperature**2 * (p * (p / q).log()).sum(1).mean()
    assert distance is not None
    assert want_distance > 1e-3
    want = (1 - share) * want_loss + share * want_distance
    found = [total.item(), loss.item(), distance.item()]
    assert found == pytest.approx([want.item(), want_loss.item(), want_distance.item()], rel=1e-4)
    total.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {f"stream.{name}" for name, _ in model.stream.named_parameters()}
    gradients = torch.autograd.grad(want, list(twin.stream.parameters()))
    for parameter, wanted in zip(model.stream.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        atol = 1e-4 * wanted.abs().max().item()
        torch.testing.assert_close(parameter.grad.double(), wanted, rtol=1e-3, atol=atol)


def test_a_stream_is_trained_from_pictures_or_maps(tiny_ca: CAStream, batch: Tensor) -> None:
    tiny_ca.freeze_backbone().get_classifier().requires_grad_()  # a new one, which the teacher's word does not train
    network = StreamTraining(tiny_ca)
    logits, teacher = network(batch, teach=True)
    assert (logits.requires_grad, teacher.requires_grad) == (True, False)
    torch.testing.assert_close(logits, tiny_ca(batch))
    torch.testing.assert_close(teacher, tiny_ca.backbone(batch))
    assert not torch.allclose(logits, teacher, atol=1e-2)
    again = (network(batch), *network(tiny_ca.maps(batch), teach=True))
    assert all(map(torch.equal, again, (logits, logits, teacher)))


def test_distillations_numbers_are_checked() -> None:
    for share in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=rf"^`distill` is {share}, but must be in \(0, 1\]$"):
            Distillation(nn.CrossEntropyLoss(), share)
    with pytest.raises(ValueError, match=r"^`distill_temperature` is 0, but must be above 0$"):
        Distillation(nn.CrossEntropyLoss(), 0.5, 0)
