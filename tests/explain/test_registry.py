"""One place to add a method: a toy, registered here, is found wherever methods are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import interp_zoo
from interp_zoo import cli
from interp_zoo.explain import compare, explain, methods, register
from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods import get_method, list_methods, unregister
from interp_zoo.explain.targets import Target

ALIASES = [
    ("gradcam++", "gradcam_plusplus"),
    ("GradCAM++", "gradcam_plusplus"),
    ("gradcampp", "gradcam_plusplus"),
    ("axiomcam", "xgradcam"),
    ("axiom-cam", "xgradcam"),
    ("Grad-CAM", "gradcam"),
    ("opti-cam", "opticam"),
    ("Opti_CAM", "opticam"),
    ("Score-CAM", "scorecam"),
    ("ablation_cam", "ablationcam"),
    ("recipro-cam", "reciprocam"),
    ("Fake-CAM", "fakecam"),
]


@pytest.fixture
def toy() -> Iterator[str]:
    """A method that gives one channel of A, with an option for which."""

    @register("toy", paper="Toy et al., 2000", cost="1 forward", needs="a second channel", aliases=("toycam",))
    def one_channel(anatomy: Anatomy, pixels: Tensor, target: Target, *, channel: int = 0) -> Tensor:
        """Shows one channel of A.

        Args:
            anatomy: the cut model.
            pixels: pictures.
            target: what is explained.
            channel: which.
        """
        return anatomy.split(pixels).maps.detach()[:, channel]

    yield "toy"
    unregister("toy")


@pytest.fixture
def picture(batch: Tensor) -> Tensor:
    return batch[0, :, :96, :96]


def test_a_toy_is_listed_in_order(toy: str) -> None:
    assert toy in list_methods()
    assert list_methods() == sorted(list_methods())
    assert list_methods() == interp_zoo.list_methods()
    method = get_method("toy")
    assert (method.name, method.options, method.needs) == ("toy", {"channel": 0}, "a second channel")
    assert method.summary == "Shows one channel of A."


def test_unregister_leaves_no_trace(toy: str) -> None:
    unregister(toy)
    assert toy not in list_methods()
    for word in ("toy", "toycam"):
        with pytest.raises(ValueError, match=f'`method` "{word}" is unknown.*; known: ablationcam, '):
            get_method(word)
    unregister(toy)  # twice does no harm: the fixture does so, too


@pytest.mark.parametrize("word", ["toy", "TOY", "toycam", "ToyCAM"])
def test_explain_runs_a_toy(word: str, toy: str, tiny_vit: nn.Module, picture: Tensor) -> None:
    exp = explain(tiny_vit, picture, word, channel=5)
    assert exp.method == toy
    assert (exp.cost.forward, exp.cost.backward, exp.cost.tail) == (1, 0, 0)
    maps = interp_zoo.Explainer(tiny_vit, "toy").features(picture)
    torch.testing.assert_close(exp.raw, maps[:, 5])
    assert not torch.equal(maps[:, 0], maps[:, 5])  # the option acts


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings(r"ignore:map \d of the batch is blank:UserWarning")
def test_compare_runs_a_toy(toy: str, tiny_vit: nn.Module, picture: Tensor) -> None:
    by_name = compare(tiny_vit, picture, ["toycam", "gradcam"])
    assert list(by_name.explanations) == ["toy", "gradcam"]
    assert by_name.left_out == {}
    everything = compare(tiny_vit, picture)
    without = {"attention", "cam", "guided_backprop"}  # which need a stream, a linear tail, and ReLUs
    slow = {"extremal_perturbation", "rise"}
    assert list(everything.explanations) == [n for n in list_methods() if n not in without | slow]
    assert everything.left_out.keys() == without | slow
    assert everything.left_out["rise"] == '`method` "rise" is slow (1 + n forward (n = 8000)): ask for it by name'
    torch.testing.assert_close(everything.explanations[toy].raw, by_name.explanations[toy].raw)


def test_compare_shows_all_if_asked(toy: str, tiny_vit: nn.Module, picture: Tensor, quick: None) -> None:
    for asked in ("all", ["all"]):
        everything = compare(tiny_vit, picture, asked)
        assert {"rise", "extremal_perturbation", "toy"} <= set(everything.explanations)
        assert everything.left_out.keys() == {"attention", "cam", "guided_backprop"}
        assert all(why.startswith("`method` ") for why in everything.left_out.values())


def test_compare_gives_the_layer_to_those_that_take_one(tiny_cnn: nn.Module, picture: Tensor) -> None:
    found = compare(tiny_cnn, picture, ["gradcam", "saliency", "fakecam"], layer="layer2").explanations
    assert [exp.layer for exp in found.values()] == ["layer2", "picture", "picture"]


def test_methods_that_look_at_the_picture_take_no_layer(tiny_cnn: nn.Module) -> None:
    at_picture = [name for name in list_methods() if get_method(name).at_picture]
    assert {"saliency", "rise", "random", "occlusion"} <= set(at_picture)
    for name in at_picture:
        with pytest.raises(ValueError, match=f'`layer` does not go with method "{name}", which looks at no layer'):
            interp_zoo.Explainer(tiny_cnn, name, layer="layer3")


def test_command_line_lists_a_toy(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.out, "_width", 240)  # no cell is wrapped
    with_toy = CliRunner().invoke(cli.app, ["methods"])
    unregister(toy)
    without = CliRunner().invoke(cli.app, ["methods"])
    assert with_toy.exit_code == without.exit_code == 0
    for text in (
        "toy",
        "(also toycam)",
        "Shows one channel of A.",
        "1 forward",
        "a second channel",
        "Toy et al., 2000",
    ):
        assert text in with_toy.output
    assert "toy" not in without.output


@pytest.mark.parametrize("name", list_methods())
def test_command_line_lists_each_method(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.out, "_width", 400)
    result = CliRunner().invoke(cli.app, ["methods"])
    assert result.exit_code == 0
    method = get_method(name)
    (line,) = [line for line in result.output.splitlines() if line.split()[1:2] == [name]]
    for text in (method.summary, method.cost, method.paper):
        assert text in line
    assert method.summary.endswith((".", ":", ")"))  # the whole first sentence stands on the docstring's first line


@pytest.mark.parametrize(("word", "name"), ALIASES)
def test_aliases(word: str, name: str, tiny_vit: nn.Module) -> None:
    assert get_method(word).name == name
    assert interp_zoo.Explainer(tiny_vit, word).method == name


def test_unknown_methods_get_near_names(tiny_vit: nn.Module, picture: Tensor) -> None:
    with pytest.raises(ValueError, match=r'`method` "gradcan" is unknown \(did you mean .*gradcam.*\); known: abl'):
        explain(tiny_vit, picture, "gradcan")
    with pytest.raises(ValueError, match=r'`method` "opticamm" is unknown \(did you mean opticam'):
        compare(tiny_vit, picture, ["gradcam", "opticamm"])


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("toy", {"chanel": 1}, r'"toy" has no option `chanel` \(did you mean channel\?\); it has: channel=0'),
        (
            "opticam",
            {"iters": 5},
            r"`iters`.*it has: objective='logit', normalize='minmax', solver='fast', iterations=None, lr=None, early_",
        ),
        ("opticam", {"early_stopping": False}, r"no option `early_stopping` \(did you mean early_stop\?\)"),
        ("layercam", {"negative": True}, r"no option `negative` \(did you mean positive\?\); it has: positive=True"),
        ("scorecam", {"align_corner": True}, r"no option `align_corner` \(did you mean align_corners\?\)"),
        ("gradcam", {"objective": "logit"}, 'method "gradcam" has no option `objective`; it has: none'),
    ],
)
@pytest.mark.usefixtures("toy")
def test_unknown_options(name: str, options: dict[str, Any], match: str, tiny_vit: nn.Module, picture: Tensor) -> None:
    with pytest.raises(TypeError, match=match):
        explain(tiny_vit, picture, name, **options)


def test_compare_takes_no_options(tiny_vit: nn.Module, picture: Tensor) -> None:
    with pytest.raises(TypeError, match="compare has no argument `iterations`; it takes amp, batch_size, data_config"):
        compare(tiny_vit, picture, ["opticam"], iterations=5)


@pytest.mark.parametrize(
    ("name", "aliases", "taken"),
    [
        ("toy", (), "toy"),
        ("gradcam", (), "gradcam"),
        ("axiomcam", (), "axiomcam"),
        ("other", ("gradcam++",), r"gradcam\+\+"),
        ("other", ("fine", "scorecam"), "scorecam"),
    ],
)
def test_a_clash_of_names_raises(name: str, aliases: tuple[str, ...], taken: str, toy: str) -> None:
    before = {known: get_method(known) for known in list_methods()}

    def other(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
        raise NotImplementedError

    with pytest.raises(ValueError, match=f'`name` "{taken}" is taken by another method: choose another'):
        register(name, paper="", cost="", aliases=aliases)(other)
    assert {known: get_method(known) for known in list_methods()} == before


@pytest.mark.parametrize(("name", "aliases"), [("Toy-Net", ()), ("TOYNET", ()), ("other", ("Toy-Net",))])
def test_each_registered_word_is_found(name: str, aliases: tuple[str, ...]) -> None:
    """What can be registered is found under that very word, in any case."""

    def other(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
        raise NotImplementedError

    register(name, paper="", cost="", aliases=aliases)(other)
    try:
        for word in (name, *aliases):
            assert get_method(word).function is other
            assert get_method(word.upper()).function is other
    finally:
        unregister(name)


def test_register_is_public() -> None:
    assert methods.register is register
    assert methods.list_methods is interp_zoo.list_methods
    assert {"toy", "other"}.isdisjoint(list_methods())  # each test cleaned up
