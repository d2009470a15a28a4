"""A third of docs/coverage.md, run again: cut, tail, alignment and no trace on one model of each of these modules.

And of this package's own architectures those that are not another one with more layers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
from recipemodules import recipe_module

import interp_zoo

ROOT = Path(__file__).parents[2]

# The smallest model of a module, as docs/coverage.md has it; features of every kind: maps, NHWC, tokens with 0 to 5
# prefix tokens, class token heads, several branches, tuples, dense blocks.
MODELS = {
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convnext": "test_convnext",
    "crossvit": "crossvit_tiny_240",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "gcvit": "gcvit_xxtiny",
    "ghostnet": "ghostnet_050",
    "hiera": "hiera_tiny_224",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilevit": "mobilevit_xxs",
    "nest": "nest_tiny",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pvt_v2": "pvt_v2_b0",
    "regnet": "regnetx_002",
    "repvit": "repvit_m1",
    "resnet": "test_resnet",
    "starnet": "starnet_s050",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "vision_transformer": "test_vit",
    "vision_transformer_relpos": "test_vit_relpos",
    "volo": "volo_d1_224",
    "xcit": "xcit_nano_12_p8_224",
}
# With fewer blocks, which take less time, where the kinds of blocks are the same.
SHALLOW: dict[str, dict[str, Any]] = {
    "cait_xxs24_224": {"depth": 4},
    "coat_tiny": {"serial_depths": (1, 1, 1, 1), "parallel_depth": 2},
    "crossvit_tiny_240": {"depth": [[1, 2, 0], [1, 2, 0]]},
    "deit_tiny_patch16_224": {"depth": 4},
    "densenet121": {"block_config": (2, 2, 4, 2)},
    "hiera_tiny_224": {"stages": (1, 1, 2, 1)},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 1)},
    "tnt_s_legacy_patch16_224": {"depth": 3},
    "vit_tiny_patch16_dinov3_qkvb": {"depth": 4},
}
OWN = [
    "ca_resnet18",
    "ca_convnext_tiny",
    "ca_mobilenetv2_100",
    "ca_resnet18_cifar",
    "gr_resnet18_cifar",
]
TOO_SMALL = {"mobilenetv2_cifar", "gr_mobilenetv2_cifar"}  # 2 x 2 places, each of which sees the whole picture
NO_LOGITS = {"gemma4_vit_167m_enc", "mobilenetv5_300m_enc", "qwen3_vit_88m_enc", "qwen3_vit_306m_enc"}  # encoders alone


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return recipe_module("coverage")


def test_at_least_a_third(recipe: ModuleType) -> None:
    assert set(MODELS) <= set(recipe.timm_modules())
    assert 3 * len(MODELS) >= len(recipe.timm_modules())


@pytest.mark.filterwarnings("ignore:map .* is blank")  # an untrained network may speak against a class everywhere
@pytest.mark.parametrize(("module", "model"), [*MODELS.items(), *(("interp_zoo", name) for name in OWN)])
def test_model_is_explained(recipe: ModuleType, module: str, model: str) -> None:
    row = recipe.explain(module, model, **SHALLOW.get(model, {}))
    assert row.passed, row


def test_committed_table_is_whole(recipe: ModuleType) -> None:
    rows = recipe.read(ROOT / "docs" / "coverage.md")
    modules = {row.module: row.model for row in rows.values()}
    assert len(modules.keys() & set(recipe.timm_modules())) >= 98  # timm 1.0.31's; a newer timm may have more
    assert modules.items() >= MODELS.items()
    assert {row.model for row in rows.values() if row.module == recipe.OWN} == set(interp_zoo.list_models())


@pytest.mark.parametrize("name", ["coverage", "coverage_all"])
def test_what_fails_in_a_committed_table_is_told(recipe: ModuleType, name: str) -> None:
    rows = recipe.read(ROOT / "docs" / f"{name}.md")
    failed = {row.model: [check for check in recipe.CHECKS if not getattr(row, check)] for row in rows.values()}
    want = {m: ["align"] for m in TOO_SMALL} | {m: list(recipe.CHECKS) for m in NO_LOGITS & rows.keys()}
    assert {model: checks for model, checks in failed.items() if checks} == want
    assert all(rows[model].note for model in want)


def test_committed_table_of_all_of_timm_is_whole(recipe: ModuleType) -> None:
    file = ROOT / "docs" / "coverage_all.md"
    rows = recipe.read(file)
    timms = [row for row in rows.values() if row.module != recipe.OWN]
    assert len(timms) >= 1258  # timm 1.0.31's of up to 400 M parameters
    assert {row.module for row in timms} <= set(recipe.timm_modules())
    readme = (ROOT / "README.md").read_text()
    assert f"each of timm's {len(timms):,} architectures" in readme
    assert f"{sum(row.passed for row in timms):,} pass every check" in readme
    if recipe.of_this_timm(file):  # another has other models
        # Those that are not there are larger than that: all of a few families, made on no device.
        for model in (*timm.list_models("vit_base*"), *timm.list_models("*resnet*"), *timm.list_models("swin*")):
            assert model in rows or recipe.parameters(model) > recipe.LARGEST


def test_a_table_of_another_timm_is_made_anew(recipe: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "coverage.md"
    file.write_text(recipe.table([], "", ""))
    assert recipe.of_this_timm(file)
    file.write_text(file.read_text().replace(f"timm {timm.__version__} ", f"timm {timm.__version__}1 "))
    assert not recipe.of_this_timm(file)
    assert not recipe.of_this_timm(tmp_path / "none.md")


def test_all_of_timm_goes_on_where_it_was(recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    names = timm.list_models("starnet*")
    deadly, raising = names[1], names[2]

    def explain(module: str, name: str) -> Any:
        asked.append(name)
        if name == deadly:
            raise KeyboardInterrupt
        if name == raising:
            return recipe.Row(module, name, note="RuntimeError: too bad")
        return recipe.Row(module, name, cut="here", logits=True, map=True, alone=True, align=True, trace=True)

    monkeypatch.setattr(recipe, "explain", explain)
    monkeypatch.setattr(recipe, "LARGEST", 60_000_000)  # VGGs are larger
    output = tmp_path / "coverage.md"
    monkeypatch.setattr(sys, "argv", ["coverage.py", "--all", "--modules", "vgg,starnet", "--output", str(output)])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            recipe.main()
    assert "Of 2 models 1 pass every check" in output.read_text()  # a table of what is done so far
    assert asked == [names[0], deadly, deadly]  # what was under way is tried again, what is done is not
    recipe.main()
    assert asked[3:] == names[2:]  # and what died twice is left alone
    written = output.read_text()
    assert "`python recipes/coverage.py --all --modules vgg,starnet`" in written
    assert f"Of {len(names)} models {len(names) - 2} pass every check" in written
    assert "the process died twice" in written
    monkeypatch.setattr(sys, "argv", ["coverage.py", "--all", "--modules", "vgg", "--output", str(output)])
    recipe.main()
    monkeypatch.setattr(sys, "argv", ["coverage.py", "--all", "--modules", "starnet", "--output", str(output)])
    recipe.main()
    assert asked[3 + len(names) - 2 :] == [raising]  # what raised may have been mended
    assert list(recipe.read(output)) == names


def test_what_fails_stands_in_the_table(recipe: ModuleType) -> None:
    row = recipe.explain("none", "no_such_model")
    assert not row.passed
    assert "no_such_model" in row.note
    assert "\n" not in row.note
    assert "|" not in row.note


def test_a_table_is_read_back_as_it_was_written(recipe: ModuleType) -> None:
    file = ROOT / "docs" / "coverage.md"
    rows = recipe.read(file)
    written = recipe.table(list(rows.values()), "", "").splitlines()
    assert [line for line in file.read_text().splitlines() if line.startswith("|")] == [
        line for line in written if line.startswith("|")
    ]
    assert len(rows) > 100
    assert recipe.read(file.with_name("none.md")) == {}
