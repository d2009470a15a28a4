"""Pains 14 to 18: blank maps, one logit, several labels, other targets, logits or probabilities; and files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import assert_one_line, lively, texture
from matplotlib.text import Text
from torch import Tensor, nn

import interp_zoo

pytestmark = pytest.mark.filterwarnings("ignore:map .* is blank")  # what an untrained network says of some classes


def test_pain_14_blank_maps_say_why(tiny_cnn: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        tiny_cnn.fc.weight.copy_(-tiny_cnn.fc.weight.abs())  # type: ignore[operator, union-attr]
    with pytest.warns(UserWarning, match=r"map 0 .* blank .* no value above 0 \(nothing speaks for this target"):
        exp = interp_zoo.explain(tiny_cnn, batch[:1], "cam", target=3)
    assert torch.equal(exp.saliency, torch.zeros_like(exp.saliency))  # not NaN
    assert (exp.raw < 0).any()  # what the method gave is still there


def test_pain_15_a_head_with_one_logit(batch: Tensor) -> None:
    """It has the classes no and yes, with the probabilities of a sigmoid."""
    model = lively("test_resnet", num_classes=1)
    yes = interp_zoo.explain(model, batch, "hirescam", target=1)
    no = interp_zoo.explain(model, batch, "hirescam", target=0)
    torch.testing.assert_close(yes.raw, -no.raw)
    with torch.no_grad():
        torch.testing.assert_close(yes.probability, model(batch)[:, 0].sigmoid())
    torch.testing.assert_close(yes.probability + no.probability, torch.ones(len(batch)))


def test_pain_16_several_labels_of_one_picture(tiny_cnn: nn.Module, batch: Tensor) -> None:
    exp = interp_zoo.explain(tiny_cnn, batch[0], "gradcam", target=[2, 5, 7], multi_label=True)
    with torch.no_grad():
        scores = tiny_cnn(batch[:1]).sigmoid()[0, [2, 5, 7]]
    torch.testing.assert_close(exp.probability, scores)
    assert exp.cost.forward == pytest.approx(1 / 3)
    softmax = interp_zoo.explain(tiny_cnn, batch[0], "gradcam", target=[2, 5, 7])
    assert torch.equal(exp.saliency, softmax.saliency)  # the logit is explained in either case
    assert softmax.probability.sum() < 1
    one = interp_zoo.explain(tiny_cnn, batch[:1], "opticam", target=2, multi_label=True, iterations=2)
    with torch.no_grad():
        masked = one._pictures[0].pixels * one.saliency
        cfg: Any = tiny_cnn.pretrained_cfg
        mean, std = (torch.tensor(cfg[k])[:, None, None] for k in ("mean", "std"))
        normal = (masked - mean) / std
        torch.testing.assert_close(one.masked_probability, tiny_cnn(normal[None]).sigmoid()[:, 2])


def test_pain_16_side_by_side(tiny_cnn: nn.Module) -> None:
    found = interp_zoo.compare(tiny_cnn, texture(), ["gradcam", "hirescam"], target=3, multi_label=True)
    first = found.explanations["gradcam"]
    assert first.probability.item() != pytest.approx(
        interp_zoo.explain(tiny_cnn, texture(), "gradcam", target=3).probability.item()
    )


def test_pain_17_regression_and_embeddings(batch: Tensor) -> None:
    """A function of what the network returns: an age, or the similarity to another picture's embedding."""
    model = lively("test_resnet", num_classes=16)
    with torch.no_grad():
        reference = model(batch[2:3])

    def similarity(embedding: Tensor) -> Tensor:
        return nn.functional.cosine_similarity(embedding, reference)

    exp = interp_zoo.explain(model, batch[:2], "gradcam", target=similarity)
    assert exp.label == ["similarity"] * 2
    assert exp.probability.isnan().all()
    assert exp.raw.abs().amax((1, 2)).min() > 0
    age = interp_zoo.explain(model, batch, "hirescam", target=lambda out: out[:, 4])
    same = interp_zoo.explain(model, batch, "hirescam", target=4)
    torch.testing.assert_close(age.raw, same.raw)


def test_pain_17_raw_maps_compare_across_pictures(tiny_cnn: nn.Module, batch: Tensor) -> None:
    """HiResCAM of a linear head adds up to the logit less its bias: the raw maps have its unit."""
    exp = interp_zoo.explain(tiny_cnn, batch, "hirescam", target=3)
    with torch.no_grad():
        logits = tiny_cnn(batch)[:, 3] - tiny_cnn.fc.bias[3]  # type: ignore[index, union-attr]
    torch.testing.assert_close(exp.raw.sum((1, 2)), logits, atol=1e-4, rtol=1e-3)


def test_pain_18_models_that_end_in_a_softmax_are_told(tiny_cnn: nn.Module, batch: Tensor) -> None:
    with pytest.warns(UserWarning, match="seems to end in a softmax"):
        interp_zoo.explain(nn.Sequential(tiny_cnn, nn.Softmax(1)).eval(), batch, "gradcam")
    interp_zoo.explain(tiny_cnn, batch, "gradcam")  # which is no warning


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("classes", [1, 10])
def test_models_that_end_in_sigmoids_are_told(classes: int, multi_label: bool, batch: Tensor) -> None:
    net = lively("test_resnet", num_classes=classes)
    with pytest.warns(UserWarning, match="seems to end in a sigmoid"):
        interp_zoo.explain(nn.Sequential(net, nn.Sigmoid()).eval(), batch, "gradcam", multi_label=multi_label)
    interp_zoo.explain(net, batch, "gradcam", multi_label=multi_label)  # which is no warning


def test_one_logit_that_is_in_0_1_by_chance(batch: Tensor) -> None:
    net: Any = lively("test_resnet", num_classes=1)
    with torch.no_grad():
        net.fc.bias += 0.5 - net(batch).mean()
        assert ((net(batch) > 0) & (net(batch) < 1)).all()
    interp_zoo.explain(net, batch, "hirescam")  # which is no warning


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_pain_17_embeddings_have_no_classes(name: str, batch: Tensor) -> None:
    model = lively(name, num_classes=0)
    with pytest.raises(ValueError, match=r"`model` has no classifier \(num_classes=0\).*give a function") as error:
        interp_zoo.explain(model, batch, "gradcam")
    assert_one_line(error.value)
    with torch.no_grad():
        unit = int(model(batch).mean(0).argmax())
    for target in (unit, lambda out: out[:, :5].sum(1)):
        exp = interp_zoo.explain(model, batch, "hirescam", target=target)
        assert exp.saliency.std() > 0.01


def test_a_function_in_a_list(tiny_cnn: nn.Module, batch: Tensor) -> None:
    """As pytorch-grad-cam takes its targets."""
    with pytest.raises(TypeError, match=r"`target` holds a function: give one function") as error:
        interp_zoo.explain(tiny_cnn, batch, "gradcam", target=[lambda logits: logits[:, 1]] * len(batch))
    assert_one_line(error.value)


def test_a_function_has_no_average_drop_under_its_map(tiny_cnn: nn.Module, batch: Tensor) -> None:
    found = interp_zoo.compare(tiny_cnn, batch[1:], ["gradcam"], target=lambda logits: logits[:, 1])
    texts = [text.get_text() for text in found.figure().findobj(Text)]
    assert any("forward" in text for text in texts)
    assert not any("nan" in text for text in texts)


WAYS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "explain": lambda model, x: interp_zoo.explain(model, x, "gradcam"),
    "Explainer": lambda model, x: interp_zoo.Explainer(model, "gradcam")(x),
    "maps": lambda model, x: interp_zoo.Explainer(model, "gradcam").maps(x),
    "compare": lambda model, x: interp_zoo.compare(model, x, ["gradcam"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_warnings_point_at_the_users_line(way: str, tiny_cnn: nn.Module, batch: Tensor) -> None:
    model = nn.Sequential(tiny_cnn, nn.Softmax(1)).eval()
    with pytest.warns(UserWarning, match="softmax") as told:
        WAYS[way](model, batch)
    assert {warning.filename for warning in told} == {__file__}


def test_pain_18_the_logit_is_explained(tiny_cnn: nn.Module, batch: Tensor) -> None:
    """Grad-CAM the logit: scaling all logits, which changes probabilities, changes no normalised map."""

    class Scaled(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = 4 * self.net(x)
            return logits

    want = interp_zoo.explain(tiny_cnn, batch[1:], "gradcam", target=1)
    exp = interp_zoo.explain(Scaled(tiny_cnn).eval(), batch[1:], "gradcam", target=1)
    torch.testing.assert_close(exp.saliency, want.saliency, atol=1e-4, rtol=1e-4)
    assert (exp.probability - want.probability).abs().max() > 0.01


@pytest.mark.parametrize("method", ["random", "rise", "smoothgrad", "opticam"])
def test_methods_that_draw_have_a_seed(method: str, tiny_cnn: nn.Module, batch: Tensor) -> None:
    options: dict[str, Any] = {"rise": {"n": 8}, "smoothgrad": {"n": 3}, "opticam": {"iterations": 2}}.get(method, {})
    one = interp_zoo.explain(tiny_cnn, batch, method, target=3, **options)
    torch.manual_seed(17)
    assert torch.equal(interp_zoo.explain(tiny_cnn, batch, method, target=3, **options).saliency, one.saliency)
    if method != "opticam":  # which draws nothing
        other = interp_zoo.explain(tiny_cnn, batch, method, target=3, seed=1, **options)
        assert not torch.equal(other.saliency, one.saliency)
