"""Every method against its slow twin: the same map as the paper's formula gives in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import QUICK, READ_TOKENS, suits
from oracles import ORACLES, maps_and_gradients, masked, scaled, upsampled
from oracles_opticam import opticam_value, slow_opticam
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain.api import Amp
from interp_zoo.explain.methods import get_method

# Where each tiny model is cut, two classes, of which the first one's score is above 0 and the second one's below, and
# the pictures' size (a class token's twin reads squares only).
LAYERS = {"tiny_cnn": "layer4", "tiny_vit": "blocks.4", "tiny_nonlinear": "norm_pre", "tiny_ca": "tokens"}
CLASSES = {"tiny_cnn": [2, 9], "tiny_vit": [3, 8], "tiny_nonlinear": [7, 8], "tiny_ca": [3, 5]}
SIZES = {"tiny_cnn": (64, 96), "tiny_vit": (96, 96), "tiny_nonlinear": (64, 96), "tiny_ca": (64, 96)}
MODELS = list(LAYERS)
TWINS_LAYERS = LAYERS | {"tiny_ca": "backbone.layer4"}  # whose places the tokens are, with a query before them
SUITED = [(name, kind) for name in interp_zoo.list_methods() for kind in MODELS if suits(name, kind)]

# Compared in float64 alone: Opti-CAM's hundred steps carry rounding on, and HiResCAM before LayerNorm is little else.
DOUBLE_ONLY = {("opticam", kind) for kind in MODELS} | {("hirescam", "tiny_vit")}

# Options other than the defaults: all values of the words, both of the switches.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("attention", {"block": 1}),
    ("attention", {"softmax": True}),
    ("center_gaussian", {"sigma": 0.1}),
    ("extremal_perturbation", {"areas": (0.3, 0.05)}),
    ("extremal_perturbation", {"iterations": 12}),
    ("integrated_gradients", {"steps": 3}),
    ("layercam", {"positive": False}),
    ("layercam", {"fuse": ("layer2",)}),
    ("layercam", {"fuse": ("layer3", "layer1")}),
    ("occlusion", {"window": 0.5}),
    ("occlusion", {"stride": 0.2}),
    ("occlusion", {"score": "probability"}),
    ("random", {"seed": 3}),
    ("random", {"grid": 4}),
    ("reciprocam", {"score": "logit"}),
    ("reciprocam", {"gaussian": False}),
    ("rise", {"n": 20}),
    ("rise", {"grid": 4, "p": 0.2}),
    ("rise", {"seed": 3}),
    ("rise", {"score": "logit"}),
    ("rise", {"mask_space": "pixels"}),
    ("smoothgrad", {"n": 9}),
    ("smoothgrad", {"sigma": 0.3}),
    ("smoothgrad", {"seed": 3}),
    ("smoothgrad", {"of": "input_x_gradient"}),
    ("smoothgrad", {"of": "integrated_gradients", "n": 2}),
    ("smoothgrad", {"of": "guided_backprop"}),
    ("scorecam", {"score": "probability"}),
    ("scorecam", {"softmax": False}),
    ("scorecam", {"score": "probability", "softmax": False, "align_corners": True}),
    ("scorecam", {"mask_space": "normalised", "align_corners": True}),
    ("opticam", {"objective": "probability", "iterations": 20}),
    ("opticam", {"objective": "margin", "iterations": 20}),
    ("opticam", {"objective": "difference", "iterations": 20}),
    ("opticam", {"normalize": "max", "iterations": 15}),
    ("opticam", {"normalize": "sigmoid", "iterations": 15}),
    ("opticam", {"normalize": "tanh", "iterations": 15}),
    ("opticam", {"iterations": 15, "lr": 0.5, "early_stop": True}),
    ("opticam", {"solver": "adam"}),
    ("opticam", {"solver": "adam", "iterations": 25, "lr": 0.7}),
    ("opticam", {"solver": "adam", "iterations": 7, "lr": 3.0, "early_stop": False}),
]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(r"ignore:map \d of the batch is blank:UserWarning"),
]  # raw maps matter here


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of a tiny model's fixture."""
    return str(request.param)


@pytest.fixture
def model(kind: str, request: pytest.FixtureRequest) -> nn.Module:
    """That model."""
    made = request.getfixturevalue(kind)
    assert isinstance(made, nn.Module)
    return made


@pytest.fixture
def pictures(kind: str, batch: Tensor) -> Tensor:
    """Two normalised pictures, (2, 3, H, W)."""
    height, width = SIZES[kind]
    return batch[:2, :, :height, :width]


def twins(name: str, kind: str, model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """The twin's maps, (2, h, w), one picture and class after the other."""
    double = copy.deepcopy(model).double()
    pairs = zip(x.double().split(1), CLASSES[kind], strict=True)
    return torch.stack([ORACLES[name](double, picture, c, TWINS_LAYERS[kind], **options) for picture, c in pairs])


def packages(name: str, kind: str, model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """The package's maps, (2, h, w), in the type of `x`."""
    exp = interp_zoo.Explainer(copy.deepcopy(model).to(x.dtype), name, **options)(x, target=CLASSES[kind])
    assert exp.layer == ("picture" if get_method(name).at_picture else LAYERS[kind])
    assert exp.target.tolist() == CLASSES[kind]
    return exp.raw.double()


def assert_same_maps(got: Tensor, want: Tensor, *, tolerance: float = 1e-4) -> None:
    """Equal, map by map, up to a part of the map's largest value."""
    assert got.shape == want.shape
    size = want.abs().amax((1, 2))
    assert (size > 0).all(), "the test's maps must not be blank"
    assert ((got - want).abs().amax((1, 2)) / size).max().item() <= tolerance


def test_each_method_has_its_twin() -> None:
    assert set(ORACLES) == set(interp_zoo.list_methods())


def kinds(name: str, options: dict[str, Any]) -> list[str]:
    """Two tiny models for a method's options, or the one that it takes."""
    fit = [kind for kind in MODELS if suits(name, kind) and suits(options.get("of", name), kind)]
    if "fuse" in options:  # whose layers it names
        return ["tiny_cnn"]
    return fit[:2] if name != "attention" else ["tiny_ca"]


def test_each_option_is_tried() -> None:
    """Each option of each method stands in OPTIONS with another value than its default."""
    for name in interp_zoo.list_methods():
        for option, default in get_method(name).options.items():
            tried = [options[option] for method, options in OPTIONS if method == name and option in options]
            assert any(value != default for value in tried), (name, option)
    words = {options[o] for _, options in OPTIONS for o in ("objective", "of") if o in options}
    assert words == {
        "probability",
        "margin",
        "difference",
        "input_x_gradient",
        "integrated_gradients",
        "guided_backprop",
    }


def test_scores_of_both_signs(kind: str, model: nn.Module, pictures: Tensor) -> None:
    """The classes under test score above and below 0, which turns Ablation-CAM's weights."""
    with torch.no_grad():
        scores = model(pictures).gather(1, torch.tensor(CLASSES[kind])[:, None])[:, 0]
    assert scores[0] > 0.1
    assert scores[1] < -0.1


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in interp_zoo.list_methods() for kind in MODELS if not suits(name, kind)],
    indirect=["kind"],
)
def test_unsuitable_models(name: str, kind: str, model: nn.Module, pictures: Tensor) -> None:
    why = {
        "cam": f'needs .* "{LAYERS[kind]}"',
        "attention": "shows what a CA-Stream attends to",
        "guided_backprop": "needs ReLU or ReLU6 throughout",
        **dict.fromkeys(READ_TOKENS, "reads the attention of plain vision transformers .* has no attention matrices"),
    }[name]
    with pytest.raises(ValueError, match=f'`method` "{name}" {why}.* use .*"gradcam"'):
        interp_zoo.Explainer(model, name)(pictures)


@pytest.mark.parametrize(("name", "kind"), SUITED, indirect=["kind"])
def test_equals_its_twin(name: str, kind: str, model: nn.Module, pictures: Tensor) -> None:
    fewer = {"iterations": 30} if (name, kind) == ("opticam", "tiny_nonlinear") else QUICK.get(name, {})
    want = twins(name, kind, model, pictures, **fewer)
    got = packages(name, kind, model, pictures.double(), **fewer)
    if name == "eigencam":
        want = want * (got * want).sum((1, 2), keepdim=True).sign()
    if name in ("center_gaussian", "fakecam"):
        assert got.shape[1:] == pictures.shape[2:]
    assert_same_maps(got, want, tolerance=1e-6)
    if (name, kind) not in DOUBLE_ONLY:
        assert_same_maps(packages(name, kind, model, pictures, **fewer), want)


def test_hirescam_before_layernorm_is_rounding(tiny_vit: nn.Module, batch: Tensor) -> None:
    """LayerNorm drops a token's size, so that G is at right angles to A at each place: why DOUBLE_ONLY names it."""
    a, g = maps_and_gradients(tiny_vit.double(), batch[:1].double(), 3, "blocks.4")
    terms = g * a
    assert terms.sum(0).abs().max() < 1e-5 * terms.abs().sum(0).max()


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [(name, options, kind) for name, options in OPTIONS for kind in kinds(name, options)],
    indirect=["kind"],
)
def test_options_equal_their_twins(
    name: str, options: dict[str, Any], kind: str, model: nn.Module, pictures: Tensor
) -> None:
    options = QUICK.get(name, {}) | options
    want = twins(name, kind, model, pictures, **options)
    assert_same_maps(packages(name, kind, model, pictures.double(), **options), want, tolerance=1e-6)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_options_act(name: str, options: dict[str, Any], request: pytest.FixtureRequest, batch: Tensor) -> None:
    """No option is without effect on these pictures, so that the twins above can tell."""
    steps: dict[str, Any] = {"iterations": 20} if name == "opticam" else QUICK.get(name, {})
    x, model = batch[:2, :, :96, :96], request.getfixturevalue(kinds(name, options)[-1])
    default, other = (
        interp_zoo.Explainer(model, name, **chosen)(x, target=[3, 8]).raw for chosen in (steps, steps | options)
    )
    assert default.shape != other.shape or (default - other).abs().max() > 1e-3 * default.abs().max()


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in SUITED if n != "cam"], indirect=["kind"])
def test_function_of_the_logits_as_target(name: str, kind: str, model: nn.Module, pictures: Tensor) -> None:
    """A function that gives a class' logit is explained as the class is (Ablation-CAM then runs the tail)."""
    c = CLASSES[kind][0]
    logit = {"score": "logit"}
    steps = QUICK | {"opticam": {"iterations": 5}, "reciprocam": logit, "rise": QUICK["rise"] | logit}
    explainer = interp_zoo.Explainer(model.double(), name, **steps.get(name, {}))
    x = pictures[:1].double()
    by_class, by_function = explainer(x, target=c), explainer(x, target=lambda logits: logits[:, c])
    assert by_function.target.tolist() == [-1]
    assert_same_maps(by_function.raw, by_class.raw)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("attention", {"block": 5}, r"`block` is 5, but the stream has 5 blocks: 0 to 4, or -1"),
        ("attention", {"block": -6}, r"`block` is -6, but the stream has 5 blocks"),
        (
            "extremal_perturbation",
            {"areas": (0.1, 1.0)},
            r"`areas` is \(0.1, 1.0\), but must be shares",
        ),
        ("extremal_perturbation", {"areas": ("a",)}, r"`areas` is \('a',\), but must be shares between 0 and 1"),
        ("extremal_perturbation", {"areas": ()}, r"`areas` is \(\), but must be shares between 0 and 1"),
        ("extremal_perturbation", {"iterations": 0}, "`iterations` is 0, but must be at least 1"),
        ("integrated_gradients", {"steps": 0}, "`steps` is 0, but must be at least 1"),
        (
            "occlusion",
            {"window": 0.1, "stride": 0.2},
            "`stride` is 0.2 and `window` 0.1, but must be 0 < stride <= win",
        ),
        ("layercam", {"fuse": ("blocks.9",)}, '`fuse`: `layer` "blocks.9" does not exist in the model'),
        ("occlusion", {"stride": 0.0}, "`stride` is 0.0 and `window` 0.15, but must be 0 < stride <= window <= 1"),
        ("occlusion", {"window": 1.2}, "`window` 1.2, but must be 0 < stride <= window <= 1"),
        ("occlusion", {"score": "loss"}, '`score` is "loss", but must be "logit" or "probability"'),
        ("rise", {"n": 0}, "`n` is 0, but must be at least 1"),
        ("rise", {"grid": 0}, "`grid` is 0, but must be at least 1"),
        ("rise", {"grid": 97}, "`grid` is 97, but must be at most 96, the pixels of the picture's short side"),
        ("rise", {"seed": -1}, "`seed` is -1, but must be between 0"),
        ("random", {"seed": 2**63}, r"`seed` is \d+, but must be between 0"),
        ("random", {"grid": 0}, "`grid` is 0, but must be at least 1"),
        ("rise", {"p": 1.0}, "`p` is 1.0, but must be between 0 and 1"),
        ("rise", {"mask_space": "raw"}, '`mask_space` is "raw", but must be "pixels" or "normalised"'),
        ("rise", {"score": "loss"}, '`score` is "loss", but must be "logit" or "probability"'),
        ("smoothgrad", {"n": 0}, "`n` is 0, but must be at least 1"),
        ("smoothgrad", {"sigma": 0.0}, "`sigma` is 0.0, but must be a finite number above 0"),
        ("smoothgrad", {"sigma": float("nan")}, "`sigma` is nan, but must be a finite number above 0"),
        ("smoothgrad", {"sigma": float("inf")}, "`sigma` is inf, but must be a finite number above 0"),
        ("smoothgrad", {"seed": 2**64}, r"`seed` is \d+, but must be between 0 and 2\*\*63 - 1"),
        ("opticam", {"lr": float("inf")}, "`lr` is inf, but must be a finite number above 0"),
        ("opticam", {"lr": -1.0}, "`lr` is -1.0, but must be a finite number above 0"),
        ("smoothgrad", {"of": "gradcam"}, '`of` is "gradcam", but must be one of saliency, input_x_gradient, integ'),
        ("smoothgrad", {"of": "guided_backprop"}, '`method` "guided_backprop" needs .* and this model has gelu: use'),
        ("opticam", {"objective": "loss"}, '`objective` is "loss", but must be one of logit, probability, margin'),
        (
            "opticam",
            {"normalize": "softmax"},
            '`normalize` is "softmax", but must be one of minmax, max, sigmoid, tanh',
        ),
        ("opticam", {"iterations": 0}, "`iterations` is 0, but must be at least 1"),
        ("scorecam", {"score": "loss"}, '`score` is "loss", but must be "logit" or "probability"'),
        ("scorecam", {"mask_space": "raw"}, '`mask_space` is "raw", but must be "pixels" or "normalised"'),
        ("reciprocam", {"score": "loss"}, '`score` is "loss", but must be "logit" or "probability"'),
    ],
)
def test_wrong_values_of_options(
    name: str, options: dict[str, Any], match: str, tiny_vit: nn.Module, tiny_ca: nn.Module, batch: Tensor
) -> None:
    with pytest.raises(ValueError, match=match):
        interp_zoo.Explainer(tiny_ca if name == "attention" else tiny_vit, name, **options)(batch[:1, :, :96, :96])


def test_layers_that_are_fused_are_counted_and_named(tiny_cnn: nn.Module, batch: Tensor) -> None:
    cost = interp_zoo.explain(tiny_cnn, batch[:2], "layercam", fuse=("layer3", "layer1")).cost
    assert (cost.forward, cost.backward) == (3, 3)
    with pytest.raises(TypeError, match=r"`fuse` .*must be like tuple\[str, ...\], not 'layer3'"):
        interp_zoo.explain(tiny_cnn, batch[:1], "layercam", fuse="layer3")
    with pytest.raises(TypeError, match="`fuse`: `layer` must be a layer's name"):
        interp_zoo.explain(tiny_cnn, batch[:1], "layercam", fuse=(3,))


def test_opticam_on_transformers_as_its_authors_cut_them(tiny_vit: nn.Module, batch: Tensor) -> None:
    """Before the last block's attention, at its LayerNorm, without the class token."""
    layer, model, x = "blocks.5.norm1", tiny_vit.double(), batch[:2].double()
    exp = interp_zoo.explain(model, x, "opticam", layer=layer, iterations=15, target=[3, 2])
    want = torch.stack([slow_opticam(model, x[i : i + 1], c, layer, iterations=15) for i, c in enumerate((3, 2))])
    assert exp.layer == layer
    assert_same_maps(exp.raw.double(), want)


@pytest.mark.parametrize("objective", ["probability", "margin"])
def test_opticam_needs_a_class_for(objective: str, tiny_vit: nn.Module, batch: Tensor) -> None:
    explainer = interp_zoo.Explainer(tiny_vit, "opticam", objective=objective)
    with pytest.raises(ValueError, match=f'`objective` "{objective}" needs a class as target'):
        explainer(batch[:1, :, :96, :96], target=lambda logits: logits[:, 0])


@pytest.mark.parametrize("objective", ["logit", "probability", "margin", "difference"])
def test_opticam_never_ends_below_its_start(objective: str, kind: str, model: nn.Module, pictures: Tensor) -> None:
    """What is maximised is at least what the mean map gives, also where each step leaps far too wide."""
    explainer = interp_zoo.Explainer(model, "opticam", objective=objective, iterations=10, lr=30.0)
    found = explainer(pictures, target=CLASSES[kind]).raw.double()
    starts = explainer.features(pictures).double().relu().mean(1)
    double = copy.deepcopy(model).double()
    for x, c, first, last in zip(pictures.double().split(1), CLASSES[kind], starts, found, strict=True):
        with torch.no_grad():
            y = double(x)[0, c]
            start, end = (
                opticam_value(masked(double, x, scaled(upsampled(s, *SIZES[kind]))), c, y, objective)
                for s in (first, last)
            )
        assert end >= start - 1e-6


def test_linear_tail_makes_methods_agree(tiny_cnn: nn.Module, batch: Tensor) -> None:
    """Behind average pooling and a linear classifier the gradient is the classifier's row at each place."""
    maps = {}
    for name in ("cam", "gradcam", "xgradcam", "hirescam", "shapleycam"):
        raw = interp_zoo.Explainer(tiny_cnn, name)(batch, target=[2, 3, 4]).raw
        maps[name] = raw / raw.abs().amax((1, 2), keepdim=True)
    assert len(maps) == 5
    for name, found in maps.items():
        torch.testing.assert_close(found, maps["cam"], rtol=0, atol=1e-5, msg=name)


def test_cam_is_the_classifiers_row(tiny_cnn: nn.Module, batch: Tensor) -> None:
    explainer = interp_zoo.Explainer(tiny_cnn, "cam")
    weight = tiny_cnn.get_submodule("fc").weight
    assert isinstance(weight, Tensor)
    want = torch.einsum("bk,bkhw->bhw", weight.detach()[[2, 3, 9]], explainer.features(batch))
    torch.testing.assert_close(explainer(batch, target=[2, 3, 9]).raw, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("amp_first", [True, False])
def test_cam_of_16_bit(amp_first: bool, tiny_cnn: nn.Module, tiny_nonlinear: nn.Module, batch: Tensor) -> None:
    """Whether the tail is linear is tried in 32 bit, and whoever asks first, all have the same answer."""
    order: list[Amp | None] = ["bf16", None] if amp_first else [None, "bf16"]
    maps = {amp: interp_zoo.Explainer(tiny_cnn, "cam", amp=amp).maps(batch, [2, 3, 9]) for amp in order}
    torch.testing.assert_close(maps["bf16"], maps[None], rtol=0, atol=0.1)
    for kind in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(tiny_cnn).to(kind)
        got = interp_zoo.Explainer(half, "cam").maps(batch, [2, 3, 9])
        torch.testing.assert_close(got, maps[None], rtol=0, atol=0.1)
        cost = interp_zoo.Explainer(half, "ablationcam")(batch, target=1).cost
        assert (cost.forward, cost.tail) == (1, 0)  # one matrix product for all channels
    with pytest.raises(ValueError, match="needs global average pooling and a linear classifier"):
        interp_zoo.Explainer(tiny_nonlinear.bfloat16(), "cam").maps(batch, [2, 3, 9])
