"""Push and pull with the real client, against a Hub on 127.0.0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from conftest import assert_one_line, lively, saved
from hubserver import Hub
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

import interp_zoo
from interp_zoo import cli
from interp_zoo.hub import FILES, prepare, publish

NAME, REPO = "ca_resnet18_cifar", "me/ca_resnet18_cifar.cifar100"
FIGURE = {"dataset": "cifar100", "split": "test", "metric": "accuracy", "value": 61.25}
RESULTS = {"model": NAME, "command": "accelerate launch recipes/evaluate.py", "results": [FIGURE]}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(RESULTS))
    return file


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_there_and_back(hub: Hub, results: Path, x: Tensor) -> None:
    model = lively(NAME)
    done = publish(model, REPO, results=results)
    assert done.url == f"{hub.url}/{REPO}"
    assert done.commit == hub.oid(REPO)
    assert sorted(hub.repos[REPO][-1]) == sorted([*FILES, ".gitattributes"])  # nothing pickled
    assert len(hub.repos[REPO]) == 2  # one commit
    assert REPO not in hub.private
    back = timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()
    assert torch.equal(back(x), model(x))
    assert type(back) is type(model)
    pinned = timm.create_model(f"hf-hub:{REPO}@{done.commit}", pretrained=True).eval()
    assert torch.equal(pinned(x), model(x))
    by_cfg: dict[str, Any] = {"pretrained_cfg_overlay": {"hf_hub_id": f"{REPO}@{done.commit}"}}
    assert torch.equal(timm.create_model(NAME, pretrained=True, **by_cfg).eval()(x), model(x))
    exp = interp_zoo.explain(f"hf-hub:{REPO}", x, method="attention", target=3)
    assert torch.equal(exp.raw, interp_zoo.explain(model, x, method="attention", target=3).raw)


def test_fine_tuned_models_come_back(hub: Hub, tmp_path: Path) -> None:
    """Other classes, other channels, channels last, started from a backbone's weights: as they were saved."""
    body = prepare(lively("resnet18_cifar", num_classes=7, in_chans=1), "me/body", tmp_path / "body")
    assert [file.name for file in body] == list(FILES)
    model: Any = timm.create_model(NAME, backbone_pretrained=f"local-dir:{tmp_path / 'body'}", in_chans=1)
    assert model.num_classes == 7
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), model.backbone(x))
        for parameter in model.stream.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.to(memory_format=torch.channels_last)
    publish(model, REPO, private=True)
    assert hub.private == {REPO}
    assert "backbone_pretrained" not in json.loads(hub.repos[REPO][-1]["config.json"])["model_args"]
    back = timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()
    torch.testing.assert_close(back(x), model(x))
    again = timm.create_model(f"hf-hub:{REPO}", pretrained=True, num_classes=3).eval()
    assert again(x).shape == (2, 3)
    assert torch.equal(again.get_submodule("backbone.conv1").weight, model.backbone.conv1.weight)  # type: ignore[arg-type]


def test_models_that_nobody_could_load(tmp_path: Path) -> None:
    by_hand = interp_zoo.models.CAStream(lively("test_resnet"), init="paper")
    changed: Any = lively("resnet18_cifar")
    changed.fc = nn.Linear(512, 3)
    odd: Any = lively("resnet18_cifar")
    odd.maxpool = nn.ReLU()  # the same weights, another function
    features = timm.create_model("resnet18_cifar", features_only=True)
    infinite = lively(NAME)
    with torch.no_grad():
        infinite.get_parameter("stream.query")[3] = torch.nan
    for model, match in (
        (nn.Linear(2, 2), "`model` is a Linear of no registered timm architecture"),
        (by_hand, "`model` is a CAStream of no registered timm architecture"),
        (changed, '`model` is not what timm makes of "resnet18_cifar", .*: 2 tensors differ, fc.weight first'),
        (timm.create_model(NAME), "`model` has a stream that is not trained"),
        (odd, '`model` is not what timm makes of "resnet18_cifar", .*: .*maxpool'),
        (features, "`model` is a FeatureGetterNet, not a classifier"),
        (infinite, r"`model` has weights that are not finite in stream\.query"),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            prepare(model, REPO, tmp_path / "out")
        assert_one_line(caught.value)
    for repo in ("nameless", "a/b/c", "me/with space", "me/..bad"):
        with pytest.raises(ValueError, match=f'`repo_id` is "{repo}"'):
            prepare(lively(NAME), repo, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_token(hub: Hub) -> None:
    for token in ("hf_bad", None):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("HF_TOKEN")
            with pytest.raises(
                PermissionError, match=r"`token` is not accepted .* log in with \"hf auth login\""
            ) as caught:
                publish(lively(NAME), REPO, token=token)
        assert_one_line(caught.value)
    assert hub.repos == {}


def test_a_repository_that_exists(hub: Hub, x: Tensor) -> None:
    hub.put(REPO, README__md=b"mine", other__txt=b"kept")
    before = hub.repos[REPO][-1]
    with pytest.raises(
        FileExistsError, match=f'`repo_id` "{REPO}" holds 2 files already: choose another name, or set `update`'
    ) as caught:
        publish(lively(NAME), REPO)
    assert_one_line(caught.value)
    assert hub.repos[REPO][-1] == before
    publish(lively(NAME), REPO, update=True)
    assert hub.repos[REPO][-1]["other.txt"] == b"kept"
    assert torch.equal(timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()(x), lively(NAME)(x))


def test_private_is_private(hub: Hub) -> None:
    """An empty public repository, as a push leaves that died, does not take what was to be private."""
    hub.repos[REPO] = [{".gitattributes": b""}]
    with pytest.raises(FileExistsError, match=r"`private` was said, but .* is there already, and public") as caught:
        publish(lively(NAME), REPO, private=True)
    assert_one_line(caught.value)
    assert len(hub.repos[REPO]) == 1
    hub.private.add(REPO)
    publish(lively(NAME), REPO, private=True)
    assert len(hub.repos[REPO]) == 2


@pytest.mark.parametrize("fault", ["commit", "broken"])
def test_a_push_that_dies_half_way(hub: Hub, fault: str, x: Tensor) -> None:
    model = lively(NAME)
    hub.fault = fault
    with pytest.raises(
        ConnectionError, match=f'the push to "{REPO}" failed .* all of it or nothing: run the same'
    ) as caught:
        publish(model, REPO)
    assert_one_line(caught.value)
    assert set(hub.repos[REPO][-1]) == {".gitattributes"}
    assert torch.equal(model(x), lively(NAME)(x))
    hub.fault = ""
    publish(model, REPO)
    assert torch.equal(timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()(x), model(x))


def test_a_hub_that_is_down(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=f'the push to "{REPO}" failed') as caught:
        publish(lively(NAME), REPO)
    assert_one_line(caught.value)
    template = "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(OSError, match='"ca_resnet18_cifar": its weights cannot be had from me/gone: ') as caught_pull:
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"hf_hub_id": "me/gone"})
    assert_one_line(caught_pull.value)


def test_a_card_that_the_hub_refuses(hub: Hub) -> None:
    with pytest.raises(ValueError, match=r'the Hub does not accept the card: .*"license" must be one of') as caught:
        publish(lively(NAME), REPO, license="mine-alone")
    assert_one_line(caught.value)
    assert set(hub.repos[REPO][-1]) == {".gitattributes"}


def test_on_the_command_line(
    hub: Hub, tmp_path: Path, results: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user does it; what is pushed and pulled, in processes of their own."""
    checkpoint = saved(NAME, tmp_path)
    push = ["push", NAME, "--repo-id", REPO, "--checkpoint", str(checkpoint), "--results", str(results)]
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "COLUMNS": "300"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    dry = CliRunner().invoke(cli.app, [*push, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert hub.repos == {}
    assert sorted(f.name for f in (tmp_path / REPO.partition("/")[2]).iterdir()) == sorted(FILES)
    assert "nothing was pushed" in dry.output
    pushed = run(sys.executable, "-m", "interp_zoo.cli", *push, "--private")
    assert pushed.returncode == 0, pushed.stderr
    assert hub.private == {REPO}
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in pushed.stdout
    again = CliRunner().invoke(cli.app, push)
    assert again.exit_code == 1
    assert again.output.strip().count("\n") == 0
    assert "holds 3 files already" in again.output
    code = (
        "import timm, torch, interp_zoo; from safetensors.torch import save_file; "
        f"m = timm.create_model('hf-hub:{REPO}', pretrained=True).eval(); "
        "x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)); "
        "save_file({'y': m(x).detach()}, 'y.safetensors')"
    )
    pulled = run(sys.executable, "-c", code)
    assert pulled.returncode == 0, pulled.stderr
    torch.testing.assert_close(load_file(tmp_path / "y.safetensors")["y"], lively(NAME)(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("more", "why"), [(["--dry-run"], "with other files"), ([], "goes with `--dry-run`")])
def test_folders_that_are_not_written_to(more: list[str], why: str, tmp_path: Path) -> None:
    checkpoint = saved(NAME, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("precious")
    arguments = ["push", NAME, "--repo-id", REPO, "--checkpoint", str(checkpoint), "-o", str(tmp_path / "mine")]
    result = CliRunner().invoke(cli.app, [*arguments, *more])
    assert result.exit_code == 1
    assert why in " ".join(result.output.split())
    assert (tmp_path / "mine" / "README.md").read_text() == "precious"
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["README.md"]
