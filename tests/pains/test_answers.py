"""Pains 14 to 18: blank maps, one logit, several labels, other targets, logits or probabilities; and files."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_one_line, lively, texture
from torch import Tensor, nn

import interp_zoo
from interp_zoo import Explanation

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


def test_pain_18_each_method_says_what_it_explains(tiny_cnn: nn.Module, batch: Tensor) -> None:
    """The logit: scaling all logits, which changes probabilities, changes no normalised map."""

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


# --- files ---


@pytest.fixture
def exp(tiny_cnn: nn.Module) -> Explanation:
    return interp_zoo.explain(tiny_cnn, [texture(), texture((90, 60), 1)], "hirescam", target=[[1, 3], [2]])


@pytest.mark.parametrize("ending", [".npz", ".json"])
def test_saved_and_read_back(ending: str, exp: Explanation, tmp_path: Path) -> None:
    file = tmp_path / "new" / f"it{ending}"
    assert exp.save(file) == [file]
    back = Explanation.load(file)
    for name in ("saliency", "raw", "target", "probability", "masked_probability", "picture"):
        assert torch.equal(getattr(back, name), getattr(exp, name)), name
        assert getattr(back, name).dtype == getattr(exp, name).dtype
    for name in ("label", "name", "method", "layer", "cost", "skipped"):
        assert getattr(back, name) == getattr(exp, name)
    assert repr(back) == repr(exp)
    assert not list(tmp_path.glob("new/.*"))  # no half-written file stays
    if ending == ".npz":
        images: Any
        wanted: Any
        images, wanted = back.overlay(), exp.overlay()
        assert all(np.array_equal(a, b) for a, b in zip(images, wanted, strict=True))
        back.save(tmp_path / "again.png")
    else:
        with pytest.raises(ValueError, match=r"read from JSON, which holds no pictures: save it as \.npz") as error:
            back.overlay()
        assert_one_line(error.value)


@pytest.mark.parametrize("ending", [".npz", ".json", ".png"])
def test_an_interrupted_save_leaves_what_was_there(
    ending: str, exp: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_self: Path, _target: Path) -> Path:
        raise KeyboardInterrupt

    (file, *_) = exp.save(tmp_path / f"it{ending}")
    before = file.read_bytes()
    monkeypatch.setattr(Path, "replace", interrupted)  # the last moment: all is written, beside the old file
    with pytest.raises(KeyboardInterrupt):
        interp_zoo.explain(lively("test_resnet", num_classes=10), texture(), "fakecam").save(file)
    assert file.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_json_holds_what_json_cannot(tiny_cnn: nn.Module, batch: Tensor, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_cnn.fc.bias.fill_(torch.nan)  # type: ignore[operator, union-attr]
    exp = interp_zoo.explain(tiny_cnn, batch, "gradcam", target=3)
    assert exp.raw.isnan().all()
    exp.save(tmp_path / "it.json")
    json.loads((tmp_path / "it.json").read_text(), parse_constant=lambda c: pytest.fail(c))  # no NaN, which is no JSON
    back = Explanation.load(tmp_path / "it.json")
    assert back.raw.isnan().all()
    assert back.probability.isnan().all()
    assert torch.equal(back.saliency, exp.saliency)


def test_an_explanation_may_be_pickled(exp: Explanation) -> None:
    """By processes that hand it on, not by us: `load` unpickles nothing."""
    back = pickle.loads(pickle.dumps(exp))
    assert torch.equal(back.saliency, exp.saliency)
    one: Any
    other: Any
    one, other = back.overlay(on="original"), exp.overlay(on="original")
    assert np.array_equal(one[1], other[1])


def broken(kind: str, good: Path, folder: Path) -> Path:
    file = folder / f"bad{'.json' if kind.startswith('json') else '.npz'}"
    if kind == "pickled":
        with np.load(good) as found:
            np.savez(file, **{**found, "raw": np.array([object()], dtype=object)})
    elif kind == "cut off":
        file.write_bytes(good.read_bytes()[:-200])
    elif kind == "without numbers":
        with np.load(good) as found:
            np.savez(file, facts=found["facts"], raw=found["raw"])
    elif kind == "another zip":
        with zipfile.ZipFile(file, "w") as other:
            other.writestr("hello", "world")
    elif kind == "json list":
        file.write_text("[]")
    elif kind == "json format":
        file.write_text('{"format": "something else"}')
    elif kind == "json, lengths":
        found = json.loads(good.with_suffix(".json").read_text())
        file.write_text(json.dumps(found | {"label": []}))
    else:
        file.write_bytes(b"\xff\xfe no text")
    return file


@pytest.mark.parametrize(
    "kind",
    [
        "pickled",
        "cut off",
        "without numbers",
        "another zip",
        "json list",
        "json format",
        "json, lengths",
        "json bytes",
    ],
)
def test_files_that_hold_none(kind: str, exp: Explanation, tmp_path: Path) -> None:
    for ending in (".npz", ".json"):
        exp.save(tmp_path / f"good{ending}")
    file = broken(kind, tmp_path / "good.npz", tmp_path)
    with pytest.raises(ValueError, match=r'^`path` ".*bad.*" holds no explanation: ') as error:
        Explanation.load(file)
    assert_one_line(error.value)


def test_paths_that_cannot_be(exp: Explanation, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Explanation.load(tmp_path / "none.npz")
    exp.save(tmp_path)
    with pytest.raises(ValueError, match=r"must end in \.npz or \.json: pictures cannot be read back"):
        Explanation.load(next(tmp_path.glob("*.png")))
    with pytest.raises(ValueError, match=r"end it in \.png, \.npz or \.json"):
        exp.save(tmp_path / "it.xyz")
