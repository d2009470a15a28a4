"""What is explained: which class, or which function of the logits, for each picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain import Explanation

METHOD = "gradcam"  # signed: another target gives another map
CLASSES = 10

pytestmark = pytest.mark.filterwarnings("ignore:map . of the batch is blank:UserWarning")  # raw maps matter here


def explained(model: nn.Module, img: Any, target: Any = None, **arguments: Any) -> Explanation:
    return interp_zoo.explain(model, img, METHOD, target=target, **arguments)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(x)
    assert isinstance(found, Tensor)
    return found


@pytest.fixture(scope="module")
def imagenet() -> nn.Module:
    """An untrained model of 1000 classes, which timm names."""
    torch.manual_seed(0)
    return timm.create_model("test_resnet").eval()


@pytest.fixture
def batch() -> Tensor:
    """Three normalised pictures (3, 3, 160, 160) of which `tiny_cnn` thinks differently."""
    generator = torch.Generator().manual_seed(4)
    contrast = torch.tensor([0.2, 1.0, 4.0])[:, None, None, None]
    return contrast * torch.randn(3, 3, 160, 160, generator=generator) + 3 * torch.randn(
        3, 3, 1, 1, generator=generator
    )


@pytest.fixture
def picture(batch: Tensor) -> Tensor:
    """One normalised picture (3, 160, 160)."""
    return batch[0]


def assert_one_line(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert "`target`" in str(error)


@pytest.mark.parametrize("target", [None, "predicted", ["predicted"] * 3, [None, "predicted", None]], ids=str)
def test_the_predicted_class_is_the_default(target: Any, tiny_cnn: nn.Module, batch: Tensor) -> None:
    exp = explained(tiny_cnn, batch, target)
    assert exp.target.dtype == torch.int64
    assert exp.target.tolist() == logits(tiny_cnn, batch).argmax(1).tolist()
    assert len(exp.target.unique()) == 3, "one class for all pictures would tell nothing"


def test_the_least_likely_class(tiny_cnn: nn.Module, batch: Tensor) -> None:
    want = logits(tiny_cnn, batch)
    assert len(want.argmin(1).unique()) > 1
    assert explained(tiny_cnn, batch, "least_likely").target.tolist() == want.argmin(1).tolist()
    mixed = explained(tiny_cnn, batch, ["least_likely", 3, None])
    assert mixed.target.tolist() == [want.argmin(1)[0], 3, want.argmax(1)[2]]


@pytest.mark.parametrize("model_name", ["tiny_cnn", "tiny_vit", "tiny_nonlinear"])
def test_probabilities_are_the_softmax_of_the_models_logits(
    model_name: str, batch: Tensor, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(model_name)
    exp = explained(model, batch, [1, 2, 3])
    want = logits(model, batch).double().softmax(1)[[0, 1, 2], [1, 2, 3]]
    torch.testing.assert_close(exp.probability.double(), want, atol=1e-5, rtol=0)
    assert ((exp.masked_probability > 0) & (exp.masked_probability < 1)).all()


def test_masked_probabilities_are_those_under_the_map(tiny_cnn: nn.Module, batch: Tensor) -> None:
    exp = explained(tiny_cnn, batch, 4)
    masked = (batch * 0.5 + 0.5) * exp.saliency[:, None]  # test_resnet's mean and std are 0.5
    want = logits(tiny_cnn, (masked - 0.5) / 0.5).softmax(1)[:, 4]
    torch.testing.assert_close(exp.masked_probability, want, atol=1e-5, rtol=0)


INTEGERS: list[Any] = [3, np.int64(3), np.int32(3), np.uint8(3), np.array(3), torch.tensor(3), [3], torch.tensor([3])]


@pytest.mark.parametrize("index", INTEGERS, ids=lambda i: type(i).__name__)
def test_an_index_of_any_integer_kind(index: Any, tiny_cnn: nn.Module, picture: Tensor) -> None:
    exp = explained(tiny_cnn, picture, index)
    assert exp.target.tolist() == [3]
    assert exp.label == ["class 3"]


@pytest.mark.parametrize(
    "targets",
    [[5, 0, 7], (5, 0, 7), np.array([5, 0, 7]), torch.tensor([5, 0, 7]), [torch.tensor(5), np.int64(0), 7]],
    ids=["list", "tuple", "numpy", "torch", "mixed"],
)
def test_one_target_a_picture(targets: Any, tiny_cnn: nn.Module, batch: Tensor) -> None:
    exp = explained(tiny_cnn, batch, targets)
    assert exp.target.tolist() == [5, 0, 7]
    assert exp.picture.tolist() == [0, 1, 2]
    for i, target in enumerate([5, 0, 7]):
        alone = explained(tiny_cnn, batch[i], target)
        torch.testing.assert_close(exp.raw[i], alone.raw[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(exp.probability[i], alone.probability[0], atol=1e-6, rtol=0)


def test_another_target_gives_another_map(tiny_cnn: nn.Module, picture: Tensor) -> None:
    exp = explained(tiny_cnn, picture, list(range(CLASSES)))
    assert exp.picture.tolist() == [0] * CLASSES
    distances = torch.cdist(exp.raw.flatten(1), exp.raw.flatten(1))
    assert distances[~torch.eye(CLASSES, dtype=torch.bool)].min() > 1e-3 * exp.raw.abs().max()


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_several_targets_for_one_picture(batch_size: int, tiny_cnn: nn.Module, batch: Tensor) -> None:
    exp = explained(tiny_cnn, batch, [[1, 2], 3, ["least_likely", "predicted", 0]], batch_size=batch_size)
    values = logits(tiny_cnn, batch)
    assert exp.picture.tolist() == [0, 0, 1, 2, 2, 2]
    assert exp.target.tolist() == [1, 2, 3, values.argmin(1)[2], values.argmax(1)[2], 0]
    assert exp.name == ["picture 0"] * 2 + ["picture 1"] + ["picture 2"] * 3
    for row in range(6):
        alone = explained(tiny_cnn, batch[exp.picture[row]], int(exp.target[row]))
        torch.testing.assert_close(exp.raw[row], alone.raw[0], atol=1e-5, rtol=1e-4)


def test_a_list_for_a_single_picture_asks_for_several_maps(tiny_cnn: nn.Module, batch: Tensor) -> None:
    for targets in ([1, 2, 3], [[1, 2, 3]], torch.tensor([[1, 2, 3]])):
        assert explained(tiny_cnn, batch[0], targets).target.tolist() == [1, 2, 3]
    grid = explained(tiny_cnn, batch[:2], torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert grid.target.tolist() == [1, 2, 3, 4, 5, 6]
    assert grid.picture.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("text", "index"), [("tabby", 281), (" Tabby CAT ", 281), ("tiger cat", 282)])
def test_a_labels_text(text: str, index: int, imagenet: nn.Module, picture: Tensor) -> None:
    exp = explained(imagenet, picture, text)
    assert exp.target.tolist() == [index]
    assert exp.label == [{281: "tabby", 282: "tiger cat"}[index]]


def test_labels_in_lists(imagenet: nn.Module, batch: Tensor) -> None:
    exp = explained(imagenet, batch, ["tabby", ["goldfish", 2], "tench"])
    assert exp.target.tolist() == [281, 1, 2, 0]
    assert exp.label == ["tabby", "goldfish", "great white shark", "tench"]


def test_an_ambiguous_label(imagenet: nn.Module, picture: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r'`target` "crane" fits 2 classes \("crane" \(134\), "crane" \(517\)'
    ) as caught:
        explained(imagenet, picture, "crane")
    assert_one_line(caught.value)
    with pytest.raises(ValueError, match=r'`target` "terrier" fits \d\d classes .* give the full name or the index'):
        explained(imagenet, picture, "terrier")


def test_an_unknown_label(imagenet: nn.Module, picture: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r'`target` "tabbby" is no class of this model: did you mean "tabby" \(281\)'
    ) as caught:
        explained(imagenet, picture, "tabbby")
    assert_one_line(caught.value)
    with pytest.raises(ValueError, match=r'`target` "qqqqq" is no class of this model: give a class index'):
        explained(imagenet, picture, "qqqqq")


def test_a_label_where_the_classes_have_no_names(tiny_cnn: nn.Module, picture: Tensor) -> None:
    with pytest.raises(ValueError, match=r'`target` is "tabby", but .* no known names: give a class index') as caught:
        explained(tiny_cnn, picture, "tabby")
    assert_one_line(caught.value)


def test_labels_of_the_models_cfg(picture: Tensor) -> None:
    names = [f"n{i}" for i in range(CLASSES)]
    cfg = {"label_names": names, "label_descriptions": {"n3": "red fox, Vulpes vulpes"}}
    model = timm.create_model("test_resnet", num_classes=CLASSES, pretrained_cfg_overlay=cfg).eval()
    exp = explained(model, picture, ["red fox", "Vulpes vulpes", "n5", 3])
    assert exp.target.tolist() == [3, 3, 5, 3]
    assert exp.label == ["red fox", "red fox", "n5", "red fox"]


def third(scores: Tensor) -> Tensor:
    return scores[:, 3]


def test_a_function_of_the_logits(tiny_cnn: nn.Module, batch: Tensor) -> None:
    want = explained(tiny_cnn, batch, 3)
    exp = explained(tiny_cnn, batch, third)
    torch.testing.assert_close(exp.raw, want.raw)
    torch.testing.assert_close(exp.saliency, want.saliency)
    assert exp.target.tolist() == [-1, -1, -1]
    assert exp.label == ["third"] * 3
    assert exp.probability.isnan().all()
    assert exp.masked_probability.isnan().all()
    difference = explained(tiny_cnn, batch, lambda s: 2 * s[:, 3] - s[:, 5])
    torch.testing.assert_close(difference.raw, 2 * want.raw - explained(tiny_cnn, batch, 5).raw, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda s: s, r"\(1, 10\)"),
        (lambda s: s.sum(), r"\(\)"),
        (lambda s: s[:, :1], r"\(1, 1\)"),
        (lambda s: 3.0, "float"),
        (lambda s: None, "NoneType"),
    ],
)
def test_a_function_that_returns_another_shape(function: Any, got: str, tiny_cnn: nn.Module, picture: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"`target` must turn logits \(1, 10\) into one .* but gave {got}:") as caught:
        explained(tiny_cnn, picture, function)
    assert_one_line(caught.value)


def test_functions_in_a_list_are_refused_not_ignored(tiny_cnn: nn.Module, batch: Tensor) -> None:
    with pytest.raises(TypeError, match=r"`target` .*function"):
        explained(tiny_cnn, batch, [third, third, third])
    with pytest.raises(TypeError, match=r"`target` .*function"):
        explained(tiny_cnn, batch[0], [3, third])


@pytest.mark.parametrize("index", [-1, 10, 1000, -(10**9)])
def test_out_of_range(index: int, tiny_cnn: nn.Module, batch: Tensor) -> None:
    for target in (index, [0, [1, index], 2]):
        with pytest.raises(ValueError, match=rf"`target` is {index}, but the model has 10 classes: 0 to 9") as caught:
            explained(tiny_cnn, batch, target)
        assert_one_line(caught.value)


@pytest.mark.parametrize("targets", [[1], [1, 2], [1, 2, 3, 4], [[1, 2, 3]], torch.tensor([1, 2]), []], ids=str)
def test_list_lengths_that_differ(targets: Any, tiny_cnn: nn.Module, batch: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"`target` has {len(targets)} entries for 3 pictures: give one a") as caught:
        explained(tiny_cnn, batch, targets)
    assert_one_line(caught.value)


def test_lists_that_name_no_class(tiny_cnn: nn.Module, batch: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`target` names no class for picture 1"):
        explained(tiny_cnn, batch, [1, [], 2])
    with pytest.raises(ValueError, match=r"`target` names no class for picture 0"):
        explained(tiny_cnn, batch[0], [])


NO_TARGETS: list[Any] = [
    True,
    np.True_,
    torch.tensor(True),
    1.0,
    np.float64(1),
    torch.tensor(1.5),
    b"tabby",
    {1},
    {1: 2},
]


@pytest.mark.parametrize("one", NO_TARGETS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("listed", [False, True], ids=["alone", "listed"])
def test_other_kinds_are_refused(one: Any, listed: bool, tiny_cnn: nn.Module, picture: Tensor) -> None:
    with pytest.raises(TypeError, match=r"`target` must be a class index, a label, .* not \w+") as caught:
        explained(tiny_cnn, picture, [2, one] if listed else one)
    assert_one_line(caught.value)


def test_a_binary_head_with_one_logit(batch: Tensor) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=1).eval()
    value = logits(model, batch)[:, 0]
    yes, no = explained(model, batch, 1), explained(model, batch, 0)
    torch.testing.assert_close(yes.raw, -no.raw)
    torch.testing.assert_close(yes.raw, explained(model, batch, lambda s: s[:, 0]).raw)
    torch.testing.assert_close(yes.probability, value.sigmoid(), atol=1e-6, rtol=0)
    torch.testing.assert_close(no.probability, (-value).sigmoid(), atol=1e-6, rtol=0)
    assert yes.label == ["class 1"] * 3
    predicted = explained(model, batch)
    assert predicted.target.tolist() == (value > 0).long().tolist()
    assert (predicted.probability >= 0.5).all()
    assert explained(model, batch, "least_likely").target.tolist() == (value <= 0).long().tolist()
    with pytest.raises(ValueError, match=r"`target` is 2, but the model has 2 classes: 0 to 1"):
        explained(model, batch, 2)


class Unsaid(nn.Module):
    """A model that does not say how many classes it has."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        found = self.net(x)
        assert isinstance(found, Tensor)
        return found


def test_a_model_that_does_not_say_how_many_classes_it_has(tiny_cnn: nn.Module, batch: Tensor) -> None:
    model = Unsaid(tiny_cnn)
    exp = explained(model, batch, [7, "least_likely", None])
    values = logits(tiny_cnn, batch)
    assert exp.target.tolist() == [7, values.argmin(1)[1], values.argmax(1)[2]]
    assert exp.label == [f"class {int(c)}" for c in exp.target]
    for index in (10, -1):
        with pytest.raises(ValueError, match=rf"`target` is {index}, but the model has 10 classes: 0 to 9") as caught:
            explained(model, batch, index)
        assert_one_line(caught.value)
    with pytest.raises(ValueError, match=r'`target` is "tabby", but .* no known names'):
        explained(model, batch, "tabby")


@pytest.mark.parametrize("classes", [10, 1100])
def test_a_replaced_classifier_takes_no_wrong_names(classes: int, picture: Tensor) -> None:
    model = timm.create_model("test_resnet").eval()  # its num_classes goes on saying 1000
    model.fc = nn.Linear(96, classes)
    exp = explained(model, picture, classes - 1)
    assert exp.label == [f"class {classes - 1}"], "ImageNet's names are for 1000 classes"
