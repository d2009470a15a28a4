"""What a batch changes: nothing but memory. And that the cost, as told, is what the network was really asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from conftest import QUICK, suits
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain import folding
from interp_zoo.explain.methods import get_method

CLASSES = {"tiny_cnn": [2, 3, 7], "tiny_vit": [3, 2, 6], "tiny_nonlinear": [4, 0, 9], "tiny_ca": [2, 3, 7]}
CHANNELS = {"tiny_cnn": 96, "tiny_vit": 64, "tiny_nonlinear": 64, "tiny_ca": 96}
PLACES = {"tiny_cnn": 6, "tiny_vit": 24, "tiny_nonlinear": 6, "tiny_ca": 6}  # of A, for pictures of 64 x 96
COPY = 2  # passes of one picture that the copy with folded BatchNorms takes, for all of them
ON_A_COPY = ("extremal_perturbation", "integrated_gradients", "occlusion", "opticam", "rise", "scorecam", "smoothgrad")
BLOCKS = 6  # of tiny_vit
STEPS = 4  # of Opti-CAM
LOOPS = {"opticam": STEPS, "extremal_perturbation": QUICK["extremal_perturbation"]["iterations"]}  # one after the other
# Of the picture itself or of others made of it: how many go forward for one, and back.
EXPANSIONS = {
    "guided_backprop": (1, 1),
    "input_x_gradient": (1, 1),
    "integrated_gradients": (QUICK["integrated_gradients"]["steps"],) * 2,
    "occlusion": (15, 0),  # windows of 26 pixels, 19 from each other, on 64 x 96
    "rise": (QUICK["rise"]["n"], 0),
    "saliency": (1, 1),
    "smoothgrad": (QUICK["smoothgrad"]["n"],) * 2,
    "attention_rollout": (1, 0),
    "gradient_rollout": (1, 1),
    "legrad": (1, BLOCKS),
}
AT_THE_LAYER = ("cam", "gradcam", "gradcam_plusplus", "hirescam", "layercam", "shapleycam", "xgradcam")  # gradients
PAIRS = [(name, kind) for name in interp_zoo.list_methods() for kind in CLASSES if suits(name, kind)]
ONCE_EACH = [(name, kind) for name, kind in PAIRS if kind == "tiny_vit" or name in ("cam", "attention")]

pytestmark = [
    pytest.mark.usefixtures("one_thread", "quick"),
    pytest.mark.filterwarnings(r"ignore:map \d of the batch is blank:UserWarning"),
]


@dataclass
class Seen:
    """How many pictures each call of the first convolution and of the classifier held, and went back through."""

    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    backward: list[int] = field(default_factory=list)


@contextmanager
def watched(model: nn.Module) -> Iterator[Seen]:
    """Counts by hooks of the test's own."""
    seen = Seen()
    config: Any = model.pretrained_cfg
    first, last = (model.get_submodule(config[key]) for key in ("first_conv", "classifier"))

    def note_gradient(gradient: Tensor) -> None:
        seen.backward.append(len(gradient))

    def note_logits(_module: nn.Module, _args: Any, logits: Tensor) -> None:
        if logits.requires_grad:
            logits.register_hook(note_gradient)

    handles = [
        first.register_forward_pre_hook(lambda _module, args: seen.first.append(len(args[0]))),
        last.register_forward_pre_hook(lambda _module, args: seen.last.append(len(args[0]))),
        last.register_forward_hook(note_logits),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """The name of a tiny model's fixture."""
    return str(request.param)


@pytest.fixture
def pictures(batch: Tensor) -> Tensor:
    """Three normalised pictures, (3, 3, 64, 96), in float64: no rounding hides, or feigns, a difference."""
    return batch[:, :, :64, :96].double()


_PREPARED: dict[str, nn.Module] = {}  # one for all tests: what is explained is afterwards as before


@pytest.fixture
def model(kind: str, request: pytest.FixtureRequest, pictures: Tensor) -> nn.Module:
    """That model in float64, its cut known (the passes of a first call, in no picture's cost, are not under test)."""
    if kind not in _PREPARED:
        made = request.getfixturevalue(kind)
        assert isinstance(made, nn.Module)
        interp_zoo.Explainer(made.double(), "ablationcam")(pictures[:1])  # which tries whether the tail is affine
        if kind == "tiny_vit":  # methods that read its attention cut it after its last block
            interp_zoo.Explainer(made, "attention_rollout")(pictures[:1])
        _PREPARED[kind] = made
    return _PREPARED[kind]


@pytest.fixture
def plain_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy with folded BatchNorms counts as it is: without layers that take a picture twice, or fill up its batch."""
    for how in ("_not_alone", "_in_fours"):
        monkeypatch.setattr(folding, how, lambda _module, run, x: run(x))


def explainer(name: str, model: nn.Module, **arguments: Any) -> interp_zoo.Explainer:
    """With a known, small number of steps for Opti-CAM."""
    if name == "opticam":
        arguments = {"iterations": STEPS, "early_stop": False, **arguments}
    return interp_zoo.Explainer(model, name, **arguments)


def expansion(name: str, kind: str) -> tuple[int, int]:
    """How many pictures, and how many tails, one picture becomes in one stroke."""
    pictures = CHANNELS[kind] if name == "scorecam" else EXPANSIONS.get(name, (1, 0))[0]
    tails = {"reciprocam": PLACES[kind], "ablationcam": 1 if kind == "tiny_cnn" else CHANNELS[kind], "legrad": BLOCKS}
    return pictures, tails.get(name, 1)


@pytest.mark.usefixtures("plain_copy")
@pytest.mark.parametrize(("name", "kind"), PAIRS, indirect=["kind"])
def test_batch_size_bounds_every_expansion(name: str, kind: str, model: nn.Module, pictures: Tensor) -> None:
    maps = []
    for batch_size in (1, 4, 7):
        with watched(model) as seen:
            maps.append(explainer(name, model, batch_size=batch_size)(pictures, target=CLASSES[kind]).raw)
        rows = min(batch_size, len(pictures))
        masked, tails = (min(batch_size, n) for n in expansion(name, kind))
        assert max(seen.first) == max(rows, masked)  # bounded, and made use of
        assert max(seen.last) == max(rows, masked, tails)
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0], rtol=1e-6, atol=1e-12)


@pytest.mark.usefixtures("plain_copy")
@pytest.mark.parametrize(("name", "kind"), PAIRS, indirect=["kind"])
def test_cost_is_what_was_run(name: str, kind: str, model: nn.Module, pictures: Tensor) -> None:
    masked, tails = expansion(name, kind)
    forward = 1 + LOOPS.get(name, masked if name == "scorecam" or name in EXPANSIONS else 0)
    linear = name == "ablationcam" and kind == "tiny_cnn"  # one gradient instead of C tails
    backward = EXPANSIONS.get(name, (0, LOOPS.get(name, int(name in AT_THE_LAYER or linear))))[1]
    # Through what has been differentiated once, which does not come by the logits; tiny_cnn's tail has no curvature.
    again_backward = int(name == "shapleycam" and kind != "tiny_cnn")
    found = explainer(name, model, batch_size=2)
    if name in LOOPS:  # which try once whether pictures change anything for each other
        found(pictures, target=CLASSES[kind])
    with watched(model) as seen:
        cost = found(pictures, target=CLASSES[kind]).cost
    again = 2 / 3 if name == "opticam" else 0  # two pictures of a chunk are cut again, each alone
    again += COPY / 3 if name in ON_A_COPY and kind in ("tiny_cnn", "tiny_ca") else 0
    assert cost.forward == pytest.approx(forward + again)
    assert cost.backward == backward + again_backward
    assert cost.tail == (tails if name in ("reciprocam", "ablationcam", "shapleycam", "legrad") and not linear else 0)
    assert cost.seconds > 0
    n = len(pictures)
    assert sum(seen.first) == pytest.approx(n * cost.forward + n)  # and once more for `masked_probability`
    assert sum(seen.last) - sum(seen.first) == n * cost.tail
    assert sum(seen.backward) == n * (cost.backward - again_backward)


@pytest.mark.parametrize(("name", "kind"), [("cam", "tiny_cnn"), *(("ablationcam", kind) for kind in CLASSES)])
def test_tails_tried_at_a_first_call_are_in_no_cost(
    name: str, kind: str, request: pytest.FixtureRequest, pictures: Tensor
) -> None:
    """Four, to see whether a model's tail is affine."""
    fresh = request.getfixturevalue(kind).double()
    interp_zoo.Explainer(fresh, "fakecam")(pictures[:1])  # which finds the cut
    found = explainer(name, fresh, batch_size=2)
    with watched(fresh) as first:
        cost = found(pictures, target=CLASSES[kind]).cost
    with watched(fresh) as again:
        assert found(pictures, target=CLASSES[kind]).cost.tail == cost.tail
    assert sum(first.last) - sum(again.last) == 4
    assert sum(again.last) - sum(again.first) == len(pictures) * cost.tail


@pytest.mark.usefixtures("plain_copy")
@pytest.mark.parametrize("kind", CLASSES, indirect=True)
def test_cost_of_an_early_stop(kind: str, model: nn.Module, pictures: Tensor) -> None:
    """Steps that leap too far soon make it worse; a picture that has stopped is not run any more."""
    found = interp_zoo.Explainer(model, "opticam", iterations=20, lr=30.0, early_stop=True)
    found(pictures, target=CLASSES[kind])
    with watched(model) as seen:
        cost = found(pictures, target=CLASSES[kind]).cost
    n = len(pictures)
    assert sum(seen.first) == pytest.approx(n * cost.forward + n)
    assert sum(seen.backward) == pytest.approx(n * cost.backward)
    assert 3 <= cost.backward < 20


@pytest.mark.parametrize(("name", "kind"), PAIRS, indirect=["kind"])
def test_neighbours_change_nothing(name: str, kind: str, model: nn.Module, pictures: Tensor) -> None:
    """One picture alone and in a batch of three give the same map."""
    found = explainer(name, model, iterations=12) if name == "opticam" else explainer(name, model)
    together = found(pictures, target=CLASSES[kind])
    assert together.picture.tolist() == [0, 1, 2]
    for i, c in enumerate(CLASSES[kind]):
        alone = found(pictures[i], target=c)
        torch.testing.assert_close(alone.raw[0], together.raw[i], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(alone.saliency[0], together.saliency[i], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [pair for pair in PAIRS if pair != ("hirescam", "tiny_vit")],  # nothing but rounding, see test_methods.py
    indirect=["kind"],
)
def test_neighbours_change_nothing_in_float32(
    name: str, kind: str, request: pytest.FixtureRequest, pictures: Tensor
) -> None:
    found = interp_zoo.Explainer(request.getfixturevalue(kind), name)
    x = pictures.float()
    together = found(x, target=CLASSES[kind])
    alone = torch.cat([found(x[i], target=c).saliency for i, c in enumerate(CLASSES[kind])])
    assert together.saliency.amax((1, 2)).max() == 1  # not all are blank
    assert (together.saliency - alone).abs().max().item() <= (1e-5 if name == "opticam" else 1e-4)


@pytest.mark.parametrize(("name", "kind"), ONCE_EACH, indirect=["kind"])
def test_several_targets_of_a_picture(name: str, kind: str, model: nn.Module, pictures: Tensor) -> None:
    found = explainer(name, model)
    a, b, c = CLASSES[kind]
    several = found(pictures[0], target=[a, b, c])
    assert several.picture.tolist() == [0, 0, 0]
    assert several.target.tolist() == [a, b, c]
    mixed = found(pictures[:2], target=[[c, a], [b]])
    assert mixed.picture.tolist() == [0, 0, 1]
    assert mixed.target.tolist() == [c, a, b]
    one = [found(pictures[i], target=t).raw[0] for i, t in ((0, a), (0, b), (0, c), (1, b))]
    torch.testing.assert_close(several.raw, torch.stack(one[:3]), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(mixed.raw, torch.stack([one[2], one[0], one[3]]), rtol=1e-6, atol=1e-12)
    looks_at_no_class = ("attention", "attention_rollout", "eigencam")
    if name not in looks_at_no_class and not get_method(name).floor:
        assert not torch.allclose(several.raw[0], several.raw[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "kind"), ONCE_EACH, indirect=["kind"])
def test_maps_alone_are_the_same(name: str, kind: str, model: nn.Module, pictures: Tensor) -> None:
    """`Explainer.maps` gives the maps of a full explanation, for one forward pass less a picture."""
    found = explainer(name, model)
    found(pictures, target=CLASSES[kind])
    with watched(model) as full:
        want = found(pictures, target=CLASSES[kind]).saliency
    with watched(model) as short:
        got = found.maps(pictures, target=CLASSES[kind])
    torch.testing.assert_close(got.float(), want, rtol=0, atol=1e-6)
    assert sum(full.first) - sum(short.first) == len(pictures)
