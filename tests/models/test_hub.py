"""Push and pull with the real client, against a Hub on 127.0.0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from conftest import lively
from hubserver import TOKEN, Hub, serving
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import interp_zoo
from interp_zoo.hub import FILES, prepare, publish

NAME, REPO = "ca_resnet18_cifar", "me/ca_resnet18_cifar.cifar100"
RESULTS = {
    "model": NAME,
    "command": "accelerate launch recipes/evaluate.py --model ca_resnet18_cifar",
    "training": "accelerate launch recipes/train.py --model ca_resnet18_cifar",
    "base_model": "me/resnet18_cifar.cifar100",
    "datasets": ["cifar100"],
    "results": [
        {"dataset": "cifar100", "split": "test", "metric": "accuracy", "name": "top-1", "value": 61.25},
        {"dataset": "cifar100", "split": "test", "metric": "average_gain", "value": 12.5},
    ],
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A running, empty Hub, which the client takes for the real one."""
    constants: Any = huggingface_hub.constants
    with serving(Hub()) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its retries
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def results(tmp_path: Path) -> Path:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(RESULTS))
    return file


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def saved(name: str, folder: Path, **kwargs: Any) -> Path:
    """A safetensors file of a lively model."""
    file = folder / f"{name}.safetensors"
    save_file(lively(name, **kwargs).state_dict(), file)
    return file


def assert_one_line(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 600


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


def test_weights_of_the_backbone_come_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    """`backbone_pretrained=True` takes timm's own weights, from safetensors."""
    weights = saved("mobilenetv2_100", tmp_path)
    hub.put("timm/mobilenetv2_100.ra_in1k", model__safetensors=weights.read_bytes())
    model: Any = timm.create_model("ca_mobilenetv2_100", backbone_pretrained=True).eval()
    want = timm.create_model("mobilenetv2_100", checkpoint_path=str(weights)).eval()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(pictures), want(pictures), rtol=1e-5, atol=1e-5)
    assert model.pretrained_cfg["crop_pct"] == want.pretrained_cfg["crop_pct"]  # type: ignore[index]
    assert model.pretrained_cfg["architecture"] == "ca_mobilenetv2_100"
    hub.repos["timm/mobilenetv2_100.ra_in1k"].append({"pytorch_model.bin": b"a pickle"})
    with pytest.raises(
        OSError, match=r'`backbone_pretrained` is "mobilenetv2_100.ra_in1k", whose weights cannot be'
    ) as caught:
        timm.create_model("ca_mobilenetv2_100", backbone_pretrained=True)
    assert_one_line(caught.value)
    assert not any("pytorch_model.bin" in request for request in hub.requests)


def test_the_card(results: Path, tmp_path: Path) -> None:
    prepare(lively(NAME), REPO, tmp_path / "out", results=results, license="mit")
    text = (tmp_path / "out" / "README.md").read_text()
    data: Any = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "timm", "image-classification")
    assert (data.base_model, data.datasets) == (RESULTS["base_model"], RESULTS["datasets"])
    figures = {
        (r.dataset_type, r.dataset_split, r.metric_type, r.metric_name): r.metric_value for r in data.eval_results
    }
    assert figures == {
        ("cifar100", "test", "accuracy", "top-1"): 61.25,
        ("cifar100", "test", "average_gain", "average_gain"): 12.5,
    }
    for part in (RESULTS["command"], RESULTS["training"], "| cifar100 | test | top-1 | 61.25 |", "11.66 M parameters"):
        assert str(part) in text
    code = text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in code


def test_a_card_without_results_has_no_figures(tmp_path: Path) -> None:
    prepare(lively(NAME), REPO, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    data: Any = ModelCard(text).data
    assert data.eval_results is None
    assert "None: nothing was measured." in text
    assert data.license == "apache-2.0"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": "ca_resnet50"}, '`results` are of "ca_resnet50", not of "ca_resnet18_cifar"'),
        ({"command": ""}, "has no command: a figure needs the command that made it"),
        ({"results": []}, "has no results"),
        ({"results": [{"dataset": "cifar100", "split": "test", "metric": "accuracy"}]}, "entry 0 needs value"),
        ({"results": [{**RESULTS["results"][0], "value": "61"}]}, "entry 0 needs value"),  # type: ignore[dict-item]
        ({"results": [{**RESULTS["results"][0], "value": float("nan")}]}, "entry 0 needs a finite value"),  # type: ignore[dict-item]
    ],
)
def test_results_that_are_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(RESULTS | change))
    with pytest.raises(ValueError, match=match) as caught:
        prepare(lively(NAME), REPO, tmp_path / "out", results=file)
    assert_one_line(caught.value)
    assert not (tmp_path / "out").exists()


def test_figures_that_no_results_file_holds(results: Path, tmp_path: Path) -> None:
    prepare(lively(NAME), REPO, tmp_path / "out", results=results)
    card = tmp_path / "card.md"
    card.write_text((tmp_path / "out" / "README.md").read_text())
    prepare(lively(NAME), REPO, tmp_path / "out", results=results, card=card)
    with pytest.raises(
        ValueError, match=r"`card` says accuracy 61.25 on cifar100, which no results file holds"
    ) as caught:
        prepare(lively(NAME), REPO, tmp_path / "none", card=card)
    assert_one_line(caught.value)
    card.write_text(card.read_text().replace("61.25", "71.25"))
    with pytest.raises(ValueError, match=r"`card` says accuracy 71.25"):
        prepare(lively(NAME), REPO, tmp_path / "none", results=results, card=card)
    with pytest.raises(FileNotFoundError, match=r'`card` ".*nowhere.md" does not exist'):
        prepare(lively(NAME), REPO, tmp_path / "none", card=tmp_path / "nowhere.md")
    with pytest.raises(FileNotFoundError, match=r'`results` ".*nowhere.json" does not exist'):
        prepare(lively(NAME), REPO, tmp_path / "none", results=tmp_path / "nowhere.json")
    results.write_text("figures: many")
    with pytest.raises(ValueError, match="is no JSON file"):
        prepare(lively(NAME), REPO, tmp_path / "none", results=results)
    assert not (tmp_path / "none").exists()


def test_models_that_nobody_could_load(tmp_path: Path) -> None:
    by_hand = interp_zoo.models.CAStream(lively("test_resnet"), init="paper")
    changed: Any = lively("resnet18_cifar")
    changed.fc = nn.Linear(512, 3)
    for model, match in (
        (nn.Linear(2, 2), "`model` is a Linear of no registered timm architecture"),
        (by_hand, "`model` is a CAStream of no registered timm architecture"),
        (changed, '`model` is not what timm makes of "resnet18_cifar", .*: 2 of 122 tensors differ, fc.weight first'),
        (timm.create_model(NAME), "`model` has a stream that is not trained"),
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
        FileExistsError, match=f'`repo_id` "{REPO}" holds 2 files already: choose another name, or'
    ) as caught:
        publish(lively(NAME), REPO)
    assert_one_line(caught.value)
    assert hub.repos[REPO][-1] == before
    publish(lively(NAME), REPO, update=True)
    assert hub.repos[REPO][-1]["other.txt"] == b"kept"
    assert torch.equal(timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()(x), lively(NAME)(x))


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


def test_weights_that_are_damaged(hub: Hub, tmp_path: Path) -> None:
    publish(lively(NAME), REPO)
    config = hub.repos[REPO][-1]["config.json"]
    whole = hub.repos[REPO][-1]["model.safetensors"]
    other = saved("resnet18_cifar", tmp_path).read_bytes()
    fewer = load_file(saved(NAME, tmp_path))
    fewer.pop("stream.query")
    save_file(fewer, tmp_path / "fewer.safetensors")
    for i, (content, match) in enumerate(
        (
            (whole[: len(whole) // 2], "cannot be loaded: "),
            (b"\x80\x04 a pickle", "cannot be loaded: "),
            (other, r"cannot be loaded: \d+ of \d+ tensors differ"),
            (
                (tmp_path / "fewer.safetensors").read_bytes(),
                r"cannot be loaded: 1 of 13\d tensors differ, stream.query first",
            ),
        )
    ):
        repo = f"me/damaged{i}"
        hub.put(repo, config__json=config, model__safetensors=content)
        for classes in (None, 5):  # with other classes timm would let missing weights pass
            with pytest.raises(ValueError, match=f'"{NAME}": the weights from {repo} {match}') as caught:
                timm.create_model(f"hf-hub:{repo}", pretrained=True, num_classes=classes)
            assert_one_line(caught.value)
        with pytest.raises(OSError, match=f'`model` "hf-hub:{repo}": its pretrained weights cannot be had'):
            interp_zoo.explain(f"hf-hub:{repo}", torch.zeros(3, 32, 32))


def test_a_download_that_breaks_off(hub: Hub, x: Tensor) -> None:
    publish(lively(NAME), REPO)
    hub.fault = "truncate"
    with pytest.raises(OSError, match=f'"{NAME}": its weights cannot be had from {REPO}: peer closed') as caught:
        timm.create_model(f"hf-hub:{REPO}", pretrained=True)
    assert_one_line(caught.value)
    with pytest.raises(OSError, match="its pretrained weights cannot be had") as caught:
        interp_zoo.explain(f"hf-hub:{REPO}", x)
    assert_one_line(caught.value)
    hub.fault = ""
    assert torch.equal(timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()(x), lively(NAME)(x))


def test_pickled_weights_are_refused(hub: Hub, tmp_path: Path) -> None:
    model = lively(NAME)
    prepare(model, REPO, tmp_path / "folder")
    torch.save(model.state_dict(), tmp_path / "folder" / "pytorch_model.bin")
    (tmp_path / "folder" / "model.safetensors").unlink()
    pickle = (tmp_path / "folder" / "pytorch_model.bin").read_bytes()
    hub.put("me/pickled", config__json=(tmp_path / "folder" / "config.json").read_bytes(), pytorch_model__bin=pickle)
    for name, overlay in (
        (f"local-dir:{tmp_path / 'folder'}", {}),
        (NAME, {"file": str(tmp_path / "folder" / "pytorch_model.bin")}),
        (NAME, {"url": "https://example.com/weights.pth"}),
    ):
        with pytest.raises(
            ValueError, match=r"convert them with save_file\(torch.load\(path, weights_only=True\), new"
        ) as caught:
            timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        assert_one_line(caught.value)
    with pytest.raises(OSError, match=r"its weights cannot be had from me/pickled: .*model.safetensors"):
        timm.create_model("hf-hub:me/pickled", pretrained=True)
    assert not any("GET" in request and ".bin" in request for request in hub.requests)


@pytest.mark.parametrize("name", [n for n in interp_zoo.list_models() if not n.startswith("demo")])
def test_no_random_weights_for_trained_ones(name: str) -> None:
    """None are released yet: `pretrained=True` says how they come about."""
    with pytest.raises(
        OSError, match=f'"{name}" has no trained weights yet: train it with "accelerate launch '
    ) as caught:
        timm.create_model(name, pretrained=True)
    assert_one_line(caught.value)
    assert f'publish it with "interp-zoo push {name}"' in str(caught.value)
    assert ("backbone_pretrained=True" in str(caught.value)) == name.startswith("ca_")


def test_backbones_of_another_architecture(tmp_path: Path) -> None:
    prepare(lively("mobilenetv2_cifar"), "me/other", tmp_path / "other")
    with pytest.raises(
        ValueError, match=r'`backbone_pretrained` is "local-dir:.*", which is no resnet18_cifar as '
    ) as caught:
        timm.create_model(NAME, backbone_pretrained=f"local-dir:{tmp_path / 'other'}")
    assert_one_line(caught.value)
    with pytest.raises(OSError, match=r'`backbone_pretrained` is "local-dir:.*", .*there is no model.safetensors in'):
        timm.create_model(NAME, backbone_pretrained=f"local-dir:{tmp_path}")
    with pytest.raises(OSError, match='whose weights cannot be had: "resnet18_cifar" has no trained weights yet'):
        timm.create_model(NAME, backbone_pretrained=True)


def test_on_the_command_line(tmp_path: Path, results: Path, x: Tensor) -> None:
    """As a user does it, in processes of their own."""
    checkpoint = saved(NAME, tmp_path)
    arguments = [NAME, "--repo-id", REPO, "--checkpoint", str(checkpoint), "--results", str(results)]
    with serving(Hub()) as hub:
        env = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            "COLUMNS": "300",
        }

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

        push = [sys.executable, "-m", "interp_zoo.cli", "push", *arguments]
        dry = run(*push, "--dry-run")
        assert dry.returncode == 0, dry.stderr
        assert hub.repos == {}
        assert sorted(f.name for f in (tmp_path / REPO.partition("/")[2]).iterdir()) == sorted(FILES)
        assert "nothing was pushed" in dry.stdout
        pushed = run(*push, "--private")
        assert pushed.returncode == 0, pushed.stderr
        assert hub.private == {REPO}
        assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in pushed.stdout
        again = run(*push)
        assert again.returncode == 1
        assert again.stderr.strip().count("\n") == 0
        assert "holds 3 files already" in again.stderr
        code = (
            "import timm, torch, interp_zoo; from safetensors.torch import save_file; "
            f"m = timm.create_model('hf-hub:{REPO}', pretrained=True).eval(); "
            "x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)); "
            "save_file({'y': m(x).detach()}, 'y.safetensors')"
        )
        pulled = run(sys.executable, "-c", code)
        assert pulled.returncode == 0, pulled.stderr
    torch.testing.assert_close(load_file(tmp_path / "y.safetensors")["y"], lively(NAME)(x), rtol=1e-6, atol=1e-6)
