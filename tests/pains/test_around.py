"""Pain 19: a module of the user's around a network. What the network gets, and what its classes are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import assert_one_line, lively
from torch import Tensor, nn
from torchvision.transforms import Normalize, v2

import interp_zoo

pytestmark = pytest.mark.filterwarnings("ignore:map .* is blank")  # what an untrained network says of some classes


class Lit(nn.Module):
    """What users write around a network: a LightningModule, a normalisation, a teacher beside it."""

    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor] | None = None, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.net = net
        self.before = before or (lambda x: x)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        out: Tensor = self.net(self.before(x))
        return out


def test_pain_19_its_input_is_the_networks(tiny_vit: nn.Module, picture_file: Path) -> None:
    want = interp_zoo.explain(tiny_vit, picture_file, "gradcam", target=3)
    exp = interp_zoo.explain(Lit(tiny_vit).eval(), picture_file, "gradcam", target=3)
    assert torch.equal(exp.saliency, want.saliency)
    assert exp.saliency.shape == (1, 160, 160)
    assert exp.layer == f"net.{want.layer}"


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
Shaped = Callable[[np.ndarray[Any, Any]], Tensor]


def shaped(values: np.ndarray[Any, Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


class Flags(nn.Module):
    """As kornia writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.flags = {"mean": shaped(MEAN), "std": shaped(STD)}

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.flags["mean"]) / self.flags["std"]


# Ways in which users normalise pictures in [0, 1], or in [0, 255], before the network.
NORMALISING: dict[str, Callable[[Tensor], Tensor]] = {
    "torchvision": Normalize(MEAN.tolist(), STD.tolist()),
    "torchvision v2": v2.Normalize(MEAN.tolist(), STD.tolist()),
    "kornia": Flags(),
    "a function": lambda x: (x - shaped(MEAN)) / shaped(STD),
    "the other way round": lambda x: x / shaped(STD) - shaped(MEAN / STD),
    "of 255": lambda x: (x / 255 - shaped(MEAN)) / shaped(STD),
    "of 255, the network's own": lambda x: x / 255,
    "to [-1, 1] and on": lambda x: 2 * x - 1,
}


@pytest.mark.parametrize("way", NORMALISING)
def test_pain_19_normalised_by_the_users_module(way: str, tiny_cnn: nn.Module, picture_file: Path) -> None:
    """Whatever it does, the network gets what it was trained with, and explanations are the network's own."""
    want = interp_zoo.explain(tiny_cnn, picture_file, "gradcam", target=3)
    model = Lit(tiny_cnn, NORMALISING[way]).eval()
    exp = interp_zoo.explain(model, picture_file, "gradcam", target=3)
    torch.testing.assert_close(exp.saliency, want.saliency, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(exp.probability, want.probability, atol=1e-5, rtol=1e-4)
    assert not model.training


class Scaled(Lit):
    """Undoes the scaling of its targets: mean and std that are none of pictures."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.mean, self.std = nn.Buffer(torch.tensor(40.0)), nn.Buffer(torch.tensor(12.0))
        self.image_mean, self.image_std = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]  # for whoever logs pictures

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(x) * self.std + self.mean


def test_pain_19_a_mean_that_is_none_of_pictures(tiny_cnn: nn.Module, picture_file: Path) -> None:
    want = interp_zoo.explain(tiny_cnn, picture_file, "gradcam", target=3)
    exp = interp_zoo.explain(Scaled(tiny_cnn).eval(), picture_file, "gradcam", target=3)
    torch.testing.assert_close(exp.saliency, want.saliency, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "before",
    [lambda x: x.flip(1), lambda x: x[..., 16:-16, 16:-16], lambda x: x**2, lambda x: -x],
    ids=["BGR", "cropped", "squared", "negative"],
)
def test_what_cannot_be_told_is_said(
    before: Callable[[Tensor], Tensor], tiny_cnn: nn.Module, picture_file: Path
) -> None:
    model = Lit(tiny_cnn, before).eval()
    with pytest.warns(UserWarning, match=r"changes its pictures in ways that cannot be told.*`data_config`") as told:
        interp_zoo.explain(model, picture_file, "gradcam")
    assert {warning.filename for warning in told} == {__file__}
    given = {"mean": (0.0,), "std": (1.0,)}
    exp = interp_zoo.explain(model, picture_file, "gradcam", data_config=given)  # which is no warning
    assert exp._pictures[0].pixels.max() <= 1


def test_networks_of_other_libraries(picture_file: Path) -> None:
    """Where they normalise by themselves they get pixels in [0, 1], else as most ImageNet models."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = nn.Conv2d(3, 8, 16, stride=16), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.body(x).relu().mean((2, 3)))
            return out

    plain = Plain().eval()
    want = interp_zoo.explain(plain, picture_file, "gradcam")
    exp = interp_zoo.explain(Lit(plain, NORMALISING["a function"]).eval(), picture_file, "gradcam")
    torch.testing.assert_close(exp.saliency, want.saliency, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", ["within", "in place", "twice"])
def test_pain_10_a_compiled_network_within(how: str, tiny_cnn: nn.Module, picture_file: Path, batch: Tensor) -> None:
    want = interp_zoo.explain(tiny_cnn, picture_file, "gradcam", target=3)
    net: Any = tiny_cnn
    if how == "in place":
        tiny_cnn.compile(backend="eager")
    else:
        net = torch.compile(tiny_cnn, backend="eager")
    model = Lit(Lit(net) if how == "twice" else net).eval()
    model(batch)
    exp = interp_zoo.explain(model, picture_file, "gradcam", target=3)
    torch.testing.assert_close(exp.saliency, want.saliency)
    torch.testing.assert_close(model(batch), model.net(batch))


def test_pain_19_two_networks_that_take_the_same(tiny_cnn: nn.Module, picture_file: Path) -> None:
    """A teacher of other classes, that comes first, decides nothing."""
    both = Lit(tiny_cnn, teacher=lively("test_resnet", seed=3, num_classes=5)).eval()
    want = interp_zoo.explain(tiny_cnn, picture_file, "gradcam", target=7)
    assert torch.equal(interp_zoo.explain(both, picture_file, "gradcam", target=7).saliency, want.saliency)


def test_pain_19_two_networks_that_do_not(tiny_cnn: nn.Module, picture_file: Path) -> None:
    teacher = lively("test_vit", num_classes=10)
    its: Any = teacher.pretrained_cfg
    its["mean"] = (0.1, 0.1, 0.1)
    both = Lit(tiny_cnn, teacher=teacher).eval()
    with pytest.raises(ValueError, match=r"2 timm networks with different inputs.*`data_config`") as error:
        interp_zoo.explain(both, picture_file, "gradcam", target=3)
    assert_one_line(error.value)
    cfg: Any = tiny_cnn.pretrained_cfg
    told = {key: cfg[key] for key in ("input_size", "mean", "std", "crop_pct", "interpolation")}
    exp = interp_zoo.explain(both, picture_file, "gradcam", target=3, data_config=told)
    assert torch.equal(exp.saliency, interp_zoo.explain(tiny_cnn, picture_file, "gradcam", target=3).saliency)


class Headed(Lit):
    """A head of the user's on a network's features."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        net, head = cast(Any, self.net), cast(Any, self.head)
        out: Tensor = head(net.forward_features(self.before(x)).mean((2, 3)))
        return out


def test_pain_19_a_head_of_the_users(picture_file: Path) -> None:
    """Its classes are its own: neither their number nor their names are the backbone's."""
    backbone = lively("test_resnet", num_classes=1000)
    assert interp_zoo.explain(backbone, picture_file, "gradcam", target=2).label == ["great white shark"]
    model = Headed(backbone, head=nn.Linear(96, 3)).eval()
    assert interp_zoo.explain(model, picture_file, "gradcam", target=2).label == ["class 2"]
    with pytest.raises(ValueError, match="`target` is 3, but the model has 3 classes: 0 to 2"):
        interp_zoo.explain(model, picture_file, "gradcam", target=3)
    many = Headed(lively("test_resnet", num_classes=10), head=nn.Linear(96, 100)).eval()
    assert interp_zoo.explain(many, picture_file, "gradcam", target=50).target.tolist() == [50]
    with pytest.raises(ValueError, match="`target` is a label of 1000 classes, but the model has 500: give") as error:
        interp_zoo.explain(Headed(backbone, head=nn.Linear(96, 500)).eval(), picture_file, "gradcam", target="tabby")
    assert_one_line(error.value)
    same = Headed(backbone, head=nn.Linear(96, 1000)).eval()
    assert interp_zoo.explain(same, picture_file, "gradcam", target="tabby").label == ["tabby"]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"meen": (0.5,)}, r'no "meen" .*mean'),
        ({"mean": (0.5, 0.5)}, "2 values of mean, but the model takes 3 channels"),
        ({"mean": 0.5}, "mean 0.5, but it must be a number for each channel"),
        ({"mean": ("a",)}, "mean .*, but it must be a number for each channel"),
        ({"std": (0.0,)}, "std .* above 0"),
        ({"std": (float("nan"),)}, "std .* above 0"),
        ({"input_size": (224, 224)}, "input_size .* must be"),
        ({"input_size": (3, 0, 224)}, "input_size .* must be"),
        ({"input_size": (1, 160, 160)}, "1 channel, but the model takes 3"),
        ({"interpolation": "bilinar"}, "interpolation 'bilinar', but it must be nearest, bilinear"),
        ({"crop_pct": "a"}, "crop_pct 'a', but it must be a share"),
        ({"crop_pct": 0}, "crop_pct 0, but it must be a share"),
        ({"crop_mode": "foo"}, "crop_mode 'foo', but it must be center, squash or border"),
    ],
    ids=str,
)
def test_data_config_that_cannot_be(
    told: dict[str, Any], message: str, tiny_cnn: nn.Module, picture_file: Path
) -> None:
    with pytest.raises(ValueError, match=f"`data_config` has {message}") as error:
        interp_zoo.explain(tiny_cnn, picture_file, "gradcam", data_config=told)
    assert_one_line(error.value)


def test_data_config_as_others_write_it(tiny_cnn: nn.Module, picture_file: Path) -> None:
    cfg: Any = tiny_cnn.pretrained_cfg
    want = interp_zoo.explain(tiny_cnn, picture_file, "gradcam", target=3)
    told = {"mean": np.array(cfg["mean"]), "std": torch.tensor(cfg["std"])}
    exp = interp_zoo.explain(tiny_cnn, picture_file, "gradcam", target=3, data_config=told)
    torch.testing.assert_close(exp.saliency, want.saliency)
