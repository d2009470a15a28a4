"""A class told from those nearest to it: which they are, what the score is, and that every method takes it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import QUICK, assert_one_line, suits
from oracles import ORACLES, masked, scaled, upsampled
from torch import Tensor, nn

import interp_zoo
from interp_zoo import contrast
from interp_zoo.explain.labels import Labels
from interp_zoo.explain.methods import get_method
from interp_zoo.explain.targets import Request, Target

NO_CLASS = ("attention", "attention_rollout", "eigencam")  # which look at no class
LAYERS = {"tiny_cnn": "layer4", "tiny_vit": "blocks.4"}
# Methods that look at a class, and not at a classifier's row.
PAIRS = [
    (name, kind)
    for name in interp_zoo.list_methods()
    for kind in LAYERS
    if suits(name, kind) and name != "cam" and not get_method(name).floor and name not in NO_CLASS
]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(r"ignore:map \d of the batch is blank:UserWarning"),
]

ONE: Any = np.int64(1)
HAND = torch.tensor([[1.0, 5.0, 4.0, 3.5, -2.0], [0.0, 1.0, 2.0, 3.0, 4.0]])


def resolved(target: Any, logits: Tensor = HAND, *, single: bool = False) -> Target:
    """The targets of pictures with these logits, of a model that does not say how many classes it has."""
    request = Request(target, pictures=len(logits), single=single, labels=Labels(nn.Flatten()))
    return request.resolve(logits[[picture for picture, _ in request.rows]], range(len(request.rows)))


def nearest(logits: Tensor, c: int, k: int) -> list[int]:
    """The k classes other than c whose logits are nearest to that of c."""
    others = [d for d in range(len(logits)) if d != c]
    return sorted(others, key=lambda d: abs(float(logits[d] - logits[c])))[:k]


@pytest.mark.parametrize(
    ("target", "want"),
    [
        (contrast(), [5 - (4 + 3.5 + 1) / 3, 4 - (3 + 2 + 1) / 3]),
        (contrast(k=1), [5 - 4, 4 - 3]),
        (contrast(3, k=2), [3.5 - (4 + 5) / 2, 3 - (2 + 4) / 2]),
        (contrast(0, k=1, gamma=0.5), [1 - 0.5 * 3.5, 0 - 0.5 * 1]),
        (contrast("least_likely", k=1), [-2 - 1, 0 - 1]),
        (contrast([2, "predicted"], k=2), [4 - (3.5 + 5) / 2, 4 - (3 + 2) / 2]),
        ([contrast(2, k=4, gamma=2), 3], [4 - 2 * (1 + 5 + 3.5 - 2) / 4, 3]),
        (contrast(torch.tensor([1, 0]), k=ONE), [5 - 4, 0 - 1]),
        (contrast(1, gamma=0), [5, 1]),
    ],
)
def test_hand_figures(target: Any, want: list[float]) -> None:
    torch.testing.assert_close(resolved(target).score(HAND), torch.tensor(want, dtype=torch.float32))


def test_the_compared_classes_stay_what_they_are() -> None:
    """Whatever other logits are scored: on a masked picture, others may be nearer."""
    target = resolved(contrast(k=1))
    other = torch.tensor([[9.0, 1.0, 0.0, 1.0, 0.0], [7.0, 7.0, 7.0, 7.0, 8.0]])
    torch.testing.assert_close(target.score(other), torch.tensor([1.0 - 0, 8.0 - 7]))
    torch.testing.assert_close(target[:1].score(other), torch.tensor([1.0, 7.0 - 7]))  # one for all rows
    torch.testing.assert_close(target[1:].score(other[1:]), torch.tensor([1.0]))


def test_what_is_made_of_the_score() -> None:
    """Probabilities are contrasted as logits are; a margin is the score less the best other class' logit."""
    target = resolved(contrast(k=2))
    p = HAND.softmax(1)
    want = torch.stack([p[0, 1] - (p[0, 2] + p[0, 3]) / 2, p[1, 4] - (p[1, 3] + p[1, 2]) / 2])
    torch.testing.assert_close(target.probability(HAND), want)
    torch.testing.assert_close(target.plain.probability(HAND), torch.stack([p[0, 1], p[1, 4]]))
    torch.testing.assert_close(target.margin(HAND), torch.tensor([5 - 3.75 - 4, 4 - 2.5 - 3]))


def test_lists_ask_for_several_maps(tiny_cnn: nn.Module, batch: Tensor) -> None:
    exp = interp_zoo.explain(tiny_cnn, batch[0], "gradcam", target=contrast([1, 2]))
    assert (exp.picture.tolist(), exp.target.tolist()) == ([0, 0], [1, 2])
    both = interp_zoo.explain(tiny_cnn, batch[0], "gradcam", target=[contrast(1), 1])
    torch.testing.assert_close(both.raw[0], exp.raw[0])
    assert not torch.allclose(both.raw[0], both.raw[1], rtol=1e-2)
    exp = interp_zoo.explain(tiny_cnn, batch, "gradcam", target=contrast([[1, 2], 3, None]), batch_size=2)
    assert (exp.picture.tolist(), exp.target.tolist()[:3]) == ([0, 0, 1, 2], [1, 2, 3])
    torch.testing.assert_close(exp.raw[0], both.raw[0], rtol=1e-4, atol=1e-6)


def test_labels_and_probabilities_are_those_of_the_class(tiny_cnn: nn.Module, batch: Tensor) -> None:
    plain = interp_zoo.explain(tiny_cnn, batch, "layercam", target=[3, 4, 5])
    exp = interp_zoo.explain(tiny_cnn, batch, "layercam", target=contrast([3, 4, 5]))
    assert (exp.target.tolist(), exp.label) == ([3, 4, 5], ["class 3", "class 4", "class 5"])
    torch.testing.assert_close(exp.probability, plain.probability)
    assert (exp.masked_probability > 0).all()
    assert not torch.allclose(exp.saliency, plain.saliency, atol=1e-2)
    torch.manual_seed(0)
    named = timm.create_model("test_resnet").eval()
    assert interp_zoo.explain(named, batch[0], "gradcam", target=contrast("tabby")).label == ["tabby"]
    assert interp_zoo.explain(named, batch[0], "gradcam", target=contrast("tabby")).target.tolist() == [281]


def test_predicted_is_the_default(tiny_cnn: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        want = tiny_cnn(batch).argmax(1)
    assert interp_zoo.explain(tiny_cnn, batch, "gradcam", target=contrast()).target.tolist() == want.tolist()


def contrasted(double: nn.Module, x: Tensor, c: int, k: int, gamma: float) -> Tensor:
    """The twin's weights of the logits (classes,), for one normalised picture (1, 3, H, W)."""
    with torch.no_grad():
        logits = double(x)[0]
    weights = torch.zeros_like(logits)
    weights[c] = 1
    for d in nearest(logits, c, k):
        weights[d] -= gamma / k
    return weights


def mixed(double: nn.Module, weights: Tensor, c: int) -> nn.Module:
    """The network with that mixture of its logits as logit c: what a twin then explains as class c."""
    new = copy.deepcopy(double)
    classifier = new.get_submodule("fc" if hasattr(new, "fc") else "head")
    with torch.no_grad():
        for name in ("weight", "bias"):
            parameter = classifier.get_parameter(name)
            parameter[c] = weights @ parameter
    return new


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_equals_the_twin_of_the_mixture(name: str, kind: str, request: pytest.FixtureRequest, batch: Tensor) -> None:
    """Each method's twin on a network that computes the contrast itself, in float64."""
    logit = {"score": "logit"}  # of which the network computes the contrast; its probabilities are others
    own: dict[str, dict[str, Any]] = {"opticam": {"iterations": 15}, "reciprocam": logit, "rise": QUICK["rise"] | logit}
    options = own.get(name, QUICK.get(name, {}))
    double = request.getfixturevalue(kind).double()
    x = batch[:2, :, :96, :96].double()
    exp = interp_zoo.Explainer(double, name, **options)(x, target=contrast([3, 8], k=2, gamma=0.75))
    for i, c in enumerate((3, 8)):
        one = x[i : i + 1]
        want = ORACLES[name](mixed(double, contrasted(double, one, c, 2, 0.75), c), one, c, LAYERS[kind], **options)
        assert (exp.raw[i] - want).abs().max() <= 1e-6 * want.abs().max()
        assert not torch.allclose(want / want.abs().max(), plain(double, one, name, c, kind, options))


def plain(double: nn.Module, x: Tensor, name: str, c: int, kind: str, options: dict[str, Any]) -> Tensor:
    """The twin's map of the class alone, its largest value 1."""
    found = ORACLES[name](double, x, c, LAYERS[kind], **options)
    scale = found.abs().max()
    return found / scale


def test_cam_is_the_contrast_of_the_rows(tiny_cnn: nn.Module, batch: Tensor) -> None:
    double, x = tiny_cnn.double(), batch[:1].double()
    explainer = interp_zoo.Explainer(double, "cam")
    row = contrasted(double, x, 4, 3, 1.0) @ double.get_submodule("fc").get_parameter("weight").detach()
    want = torch.einsum("k,khw->hw", row, explainer.features(x)[0])
    torch.testing.assert_close(explainer(x, target=contrast(4)).raw[0].double(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("objective", ["logit", "probability", "margin", "difference"])
def test_opticams_objectives_take_it(objective: str, tiny_vit: nn.Module, batch: Tensor) -> None:
    """What is maximised ends no lower than it starts, and is not what is maximised for the class alone."""
    double, x = tiny_vit.double(), batch[:1, :, :96, :96].double()
    explainer = interp_zoo.Explainer(double, "opticam", objective=objective, iterations=15)
    exp = explainer(x, target=contrast(3, k=2))
    assert not torch.allclose(exp.raw, explainer(x, target=3).raw, rtol=1e-3, atol=1e-6)
    weights = contrasted(double, x, 3, 2, 1.0)
    full = double(x)[0].detach() @ weights

    def value(saliency: Tensor) -> float:
        with torch.no_grad():
            logits = masked(double, x, scaled(upsampled(saliency.double(), 96, 96)))
        if objective == "probability":
            return float(logits.softmax(0) @ weights)
        if objective == "difference":
            return -abs(float(logits @ weights - full))
        best = float(torch.cat([logits[:3], logits[4:]]).max()) if objective == "margin" else 0.0
        return float(logits @ weights) - best

    assert value(exp.raw[0]) >= value(explainer.features(x)[0].relu().mean(0)) - 1e-6


def test_neighbours_and_batch_size_change_nothing(tiny_vit: nn.Module, batch: Tensor) -> None:
    double, x = tiny_vit.double(), batch[:, :, :64, :96].double()
    together = interp_zoo.Explainer(double, "gradcam")(x, target=contrast([1, None, 5]))
    small = interp_zoo.Explainer(copy.deepcopy(double), "gradcam", batch_size=1)(x, target=contrast([1, None, 5]))
    torch.testing.assert_close(together.raw, small.raw, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        ({"k": 0}, ValueError, "`k` of contrast is 0, but at least 1 class"),
        ({"k": -3}, ValueError, "`k` of contrast is -3, but at least 1 class"),
        ({"k": 1.5}, TypeError, "`k` of contrast must be an integer, not float"),
        ({"k": True}, TypeError, "`k` of contrast must be an integer, not bool"),
        ({"gamma": -1}, ValueError, "`gamma` of contrast is -1, but must be finite and at least 0"),
        ({"gamma": float("nan")}, ValueError, "`gamma` of contrast is nan"),
        ({"gamma": "1"}, TypeError, "`gamma` of contrast must be a number, not str"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        contrast(**arguments)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    ("target", "kind", "match"),
    [
        (contrast(k=10), ValueError, "`k` of contrast is 10, but the model has 10 classes: at most 9 are left"),
        (contrast(10), ValueError, "`target` is 10, but the model has 10 classes: 0 to 9"),
        (contrast([1, 2, 3]), ValueError, "`target` has 3 entries for 2 pictures"),
        (
            contrast(lambda logits: logits[:, 0]),
            TypeError,
            "`target` holds a function: give one function of the logits by itself",
        ),
        (contrast(contrast(1)), TypeError, "`target` must be a class index, .* a contrast, .* not Contrast"),
        (contrast("tabby"), ValueError, '`target` is "tabby", but .* no known names'),
    ],
)
def test_wrong_targets(target: Any, kind: type[Exception], match: str, tiny_cnn: nn.Module, batch: Tensor) -> None:
    with pytest.raises(kind, match=match) as caught:
        interp_zoo.explain(tiny_cnn, batch[:2], "gradcam", target=target)
    assert_one_line(caught.value)


def test_one_logit_is_told_from_none(batch: Tensor) -> None:
    model = timm.create_model("test_resnet", num_classes=1).eval()
    with pytest.raises(ValueError, match="`target` is a contrast, but the model has one logit") as caught:
        interp_zoo.explain(model, batch[:1], "gradcam", target=contrast(k=1))
    assert_one_line(caught.value)
