"""Methods that read attention: on plain vision transformers of all kinds, on one that is known, and on others."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from conftest import READ_TOKENS, assert_one_line, lively
from oracles import ORACLES
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain import compare
from interp_zoo.explain.methods import UnsuitableModel, get_method
from interp_zoo.explain.methods.attending import Attending, attentions, unfused

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(r"ignore:map \d of the batch is blank:UserWarning"),
]

# Prefixes and heads: a class token, registers beside it, two class tokens, averages with and without a class token.
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("test_vit", {}),
    "registers": ("test_vit", {"reg_tokens": 3}),
    "average beside a class token": ("test_vit", {"global_pool": "avg"}),
    "average and a register": ("test_vit2", {}),
    "average alone": ("test_vit2", {"reg_tokens": 0}),
    "rms norm": ("test_vit4", {}),
    "attention pooling": ("test_vit3", {"img_size": (64, 96)}),
    "distilled": ("deit_tiny_distilled_patch16_224", {"depth": 3, "img_size": (64, 96)}),
    "one block": ("test_vit", {"depth": 1}),
}


@pytest.fixture
def pictures(batch: Tensor) -> Tensor:
    """Two normalised pictures that are no squares, (2, 3, 64, 96)."""
    return batch[:2, :, :64, :96]


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("method", READ_TOKENS)
def test_equals_its_twin(method: str, kind: str, pictures: Tensor) -> None:
    name, options = PLAIN[kind]
    model, x = lively(name, num_classes=10, **options).double(), pictures.double()
    exp = interp_zoo.Explainer(model, method)(x, target=[3, 8])
    want = torch.stack([ORACLES[method](model, one, c, "") for one, c in zip(x.split(1), (3, 8), strict=True)])
    assert exp.raw.shape == want.shape == (2, 4, 6)
    assert (want.amax((1, 2)) > want.amin((1, 2))).all()
    spread = want.amax((1, 2), keepdim=True) - want.amin((1, 2), keepdim=True)
    assert ((exp.raw - want) / spread).abs().max() <= 1e-4  # exp.raw is float32, and rollouts are far from 0
    assert not torch.allclose(want[0], want[1], rtol=1e-4)


def pointing(*, prefix: int = 0, sharpness: float = 4.0) -> nn.Module:
    """A transformer of two blocks whose class token attends to patches by their brightness, and to nothing else.

    Channel 0 of a patch is its brightness, channel 1 marks the class token. Queries are of the class token alone, keys
    and values are brightnesses, and what was attended to goes into channel 2, which class 3 reads.
    """
    model: Any = timm.create_model("test_vit", num_classes=5, depth=2, num_heads=1, reg_tokens=prefix).eval()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        model.patch_embed.proj.weight[0] = 1 / model.patch_embed.proj.weight[0].numel()
        model.cls_token[..., 1] = 1
        model.head.weight[3, 2] = 1
        for block in model.blocks:
            block.norm1 = block.norm2 = nn.Identity()
            block.attn.qkv.weight[0, 1] = sharpness * 8  # 8 is the root of the 64 channels, which scores are divided by
            block.attn.qkv.weight[64, 0] = block.attn.qkv.weight[128, 0] = 1
            block.attn.proj.weight[2, 0] = 1
    model.norm = nn.Identity()
    made: nn.Module = model
    return made


def spot(row: int, column: int, size: tuple[int, int] = (64, 96)) -> Tensor:
    """A picture (1, 3, H, W), normalised, with one bright patch."""
    x = torch.zeros(1, 3, *size)
    x[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 1
    return x


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (64, 64), (32, 128)], ids=str)
@pytest.mark.parametrize("method", READ_TOKENS)
def test_the_bright_patch_is_the_one_attended_to(method: str, size: tuple[int, int], prefix: int) -> None:
    model = pointing(prefix=prefix)
    h, w = size[0] // 16, size[1] // 16
    for row, column in [(0, 0), (1, w - 1), (h - 1, 1), (h - 1, w - 1)]:
        exp = interp_zoo.explain(model, spot(row, column, size), method, target=3)
        assert exp.raw.shape == (1, h, w)
        assert divmod(int(exp.raw.argmax()), w) == (row, column)
        brightest = divmod(int(exp.saliency.argmax()), size[1])
        assert (brightest[0] // 16, brightest[1] // 16) == (row, column)


def test_hand_figures() -> None:
    """exp(4) for the bright patch, 1 for each of the 23 others and for the class token: 0.694 of the attention."""
    x, model = spot(1, 4), pointing()
    bright, dark = torch.e**4 / (torch.e**4 + 24), 1 / (torch.e**4 + 24)
    uniform = 1 / 25  # all others attend to all alike
    first = {"bright": bright / 2, "dark": dark / 2}  # after one block, the class token's row
    rows = {k: (dark / 2 + 0.5) * v for k, v in first.items()}  # through the class token itself
    through = (1 - dark) / 2 * uniform / 2  # through each other token to any
    rows["bright"] += through + bright / 2 / 2
    rows["dark"] += through + dark / 2 / 2
    exp = interp_zoo.explain(model, x, "attention_rollout", target=3)
    want = torch.full((1, 4, 6), rows["dark"])
    want[0, 1, 4] = rows["bright"]
    torch.testing.assert_close(exp.raw, want, rtol=1e-4, atol=1e-7)
    # ds/dA of the class token's row is the value of what is attended to: 1 for the bright patch, 0 for all else
    found = interp_zoo.explain(model, x, "legrad", target=3).raw
    want = torch.zeros(1, 4, 6)
    want[0, 1, 4] = 1 / 25  # the mean over the 25 queries, of which one is read; two blocks alike
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-7)
    found = interp_zoo.explain(model, x, "gradient_rollout", target=3).raw
    want[0, 1, 4] = 2 * bright  # of each block's row, and what the class token attends to of itself is worth nothing
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-7)


def test_a_class_that_reads_nothing() -> None:
    """Rollout looks at no class; the others find that nothing acts."""
    model, x = pointing(), spot(2, 3)
    shown = [interp_zoo.explain(model, x, "attention_rollout", target=c).raw for c in (3, 1)]
    assert torch.equal(*shown)
    for method in ("gradient_rollout", "legrad"):
        with pytest.warns(UserWarning, match="map 0 of the batch is blank"):
            exp = interp_zoo.explain(model, x, method, target=1)
        assert not exp.saliency.any()


def test_rollout_of_a_classifier_of_zeros(tiny_vit: nn.Module, pictures: Tensor) -> None:
    """Which tokens the head reads does not hang on its weights."""
    want = interp_zoo.explain(tiny_vit, pictures, "attention_rollout").raw
    for parameter in tiny_vit.get_submodule("head").parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(interp_zoo.explain(tiny_vit, pictures, "attention_rollout").raw, want)


# --- fused attention ---


def flags(model: nn.Module) -> list[Any]:
    return [vars(m).get("fused_attn") for m in model.modules()]


@pytest.mark.parametrize("method", READ_TOKENS)
def test_fused_or_not_the_map_is_the_same(method: str, tiny_vit: nn.Module, pictures: Tensor) -> None:
    fused = flags(tiny_vit)
    assert True in fused
    want = interp_zoo.explain(tiny_vit, pictures, method, target=3).raw
    assert flags(tiny_vit) == fused
    for module in attentions(tiny_vit).values():
        setattr(module, "fused_attn", False)  # noqa: B010, which mypy wants
    torch.testing.assert_close(interp_zoo.explain(tiny_vit, pictures, method, target=3).raw, want, rtol=1e-4, atol=1e-7)
    assert True not in flags(tiny_vit)


def test_flags_come_back_after_errors(tiny_vit: nn.Module) -> None:
    before = flags(tiny_vit)
    modules = [*attentions(tiny_vit).values()]
    assert len(modules) == 6

    def stop() -> None:
        assert True not in flags(tiny_vit)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), unfused(modules):
        stop()
    assert flags(tiny_vit) == before

    def broken() -> Any:
        yield modules[0]
        raise RuntimeError("half-way in")

    with pytest.raises(RuntimeError, match="half-way in"), unfused(broken()):
        pass
    assert flags(tiny_vit) == before


def test_hooks_go_and_flags_come_back_when_a_pass_raises(tiny_vit: nn.Module, pictures: Tensor) -> None:
    """Of itself, without what `explain` puts back."""

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny_vit.modules())

    with interp_zoo.Explainer(tiny_vit, "gradcam").anatomy(pictures) as (anatomy, pixels):
        attending = Attending("legrad", anatomy, pixels)
        before = flags(tiny_vit), torch.is_grad_enabled()
        handle = tiny_vit.get_submodule("blocks.3.mlp").register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            attending.split(pixels, "block")
        handle.remove()
        assert (flags(tiny_vit), torch.is_grad_enabled()) == before
        assert hooks() == 0


@pytest.mark.parametrize("method", READ_TOKENS)
def test_hooks_of_the_user_break_no_chain(method: str, tiny_vit: nn.Module, pictures: Tensor) -> None:
    """Hooks that hand on other tensors, before and after blocks."""
    want = interp_zoo.explain(tiny_vit, pictures, method, target=3).raw
    for name in ("blocks.0", "blocks.3", "blocks.5"):
        block = tiny_vit.get_submodule(name)
        block.register_forward_pre_hook(lambda _module, args: (args[0].clone(),))
        block.register_forward_hook(lambda _module, _args, output: output.clone())
    torch.testing.assert_close(interp_zoo.explain(tiny_vit, pictures, method, target=3).raw, want, rtol=1e-4, atol=1e-7)


# --- models that will not do ---


class Windows(nn.Module):
    """Attention within each half of the tokens."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        halves: Tensor = self.attention(x.reshape(2 * len(x), -1, x.shape[2]))
        return halves.reshape(x.shape)


class Skipping(nn.Sequential):
    """Blocks of which each reads the mean of the one before it and the first."""

    def forward(self, x: Tensor) -> Tensor:
        first = x
        for block in self:
            x = block((x + first) / 2)
        return x


def windowed() -> nn.Module:
    model = lively("test_vit2", num_classes=10, reg_tokens=0)
    block: Any = model.get_submodule("blocks.3")
    block.attn = Windows(block.attn)
    return model


def skipping() -> nn.Module:
    model: Any = lively("test_vit", num_classes=10)
    model.blocks = Skipping(*model.blocks)
    checked: nn.Module = model
    return checked


class Silent(nn.Module):
    """Attention to all alike, which uses no matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout()

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return x.mean(1, keepdim=True).expand_as(x)


def silent() -> nn.Module:
    model = lively("test_vit", num_classes=10)
    block: Any = model.get_submodule("blocks.2")
    block.attn = Silent()
    return model


UNSUITABLE: dict[str, tuple[Any, str]] = {
    "cnn": (lambda: lively("test_resnet", num_classes=10), "has no attention matrices"),
    "convnext": (lambda: lively("test_convnext", num_classes=10), "has no attention matrices"),
    "swin": (
        lambda: lively("swin_tiny_patch4_window7_224", num_classes=10, img_size=(64, 96), window_size=2),
        r"has its tokens on a grid \(B, H, W, C\), as for attention in windows, .* at its last map",
    ),
    "windows": (windowed, r"attends in windows or in stages \(a matrix is \(2, 2, 12, 12\), not \(1, heads, 24, 24\)"),
    "skipping": (skipping, "has blocks that are no chain"),
    "side by side": (
        lambda: lively("vit_small_patch16_18x2_224", num_classes=10, depth=2, img_size=(64, 96)),
        "has blocks that are no chain",
    ),
    "class attention": (
        lambda: lively("cait_xxs24_224", num_classes=10, depth=2, img_size=(64, 96)),
        "has other tokens than the picture's after its last block",
    ),
    "silent": (silent, "hands out 5 of 6 attention matrices"),
}


@pytest.mark.parametrize("kind", UNSUITABLE)
@pytest.mark.parametrize("method", READ_TOKENS)
def test_other_models_get_one_line(method: str, kind: str, pictures: Tensor) -> None:
    make, why = UNSUITABLE[kind]
    model = make()
    match = rf'`method` "{method}" reads the attention of plain .*{why}.*: use "gradcam" or "opticam"'
    with pytest.raises(UnsuitableModel, match=match) as caught:
        interp_zoo.explain(model, pictures[:1], method)
    assert_one_line(caught.value)
    assert interp_zoo.explain(model, pictures[:1], "gradcam").saliency.shape == (1, 64, 96)


@pytest.mark.parametrize("method", READ_TOKENS)
def test_layers_are_refused(method: str, tiny_vit: nn.Module) -> None:
    with pytest.raises(ValueError, match=f'`layer` does not go with method "{method}"'):
        interp_zoo.Explainer(tiny_vit, method, layer="blocks.2")


def test_compare_leaves_them_out(tiny_cnn: nn.Module, pictures: Tensor) -> None:
    with pytest.raises(UnsuitableModel, match='`method` "legrad" reads the attention'):
        compare(tiny_cnn, pictures[:1], ["gradcam", "legrad"])
    found = compare(tiny_cnn, pictures[:1])
    slow = {name for name in interp_zoo.list_methods() if get_method(name).slow}
    assert set(found.left_out) == {"attention", *READ_TOKENS, *slow}
    assert set(found.explanations) | set(found.left_out) == set(interp_zoo.list_methods())


@pytest.mark.parametrize("method", READ_TOKENS)
def test_half_precision(method: str, tiny_vit: nn.Module, pictures: Tensor) -> None:
    want = interp_zoo.explain(tiny_vit, pictures, method, target=3).saliency.flatten(1)
    amp = interp_zoo.explain(tiny_vit, pictures, method, target=3, amp="bf16").saliency.flatten(1)
    half = interp_zoo.explain(tiny_vit.bfloat16(), pictures, method, target=3).saliency.flatten(1)
    for found in (amp, half):
        assert torch.isfinite(found).all()
        a, b = (t - t.mean(1, keepdim=True) for t in (found, want))
        assert torch.cosine_similarity(a, b).min() > 0.9
