"""To the Hugging Face Hub. From it, timm's own way does: `timm.create_model("hf-hub:me/my_model", pretrained=True)`."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from timm.models import is_model, save_for_hf
from torch import nn

from interp_zoo.cards import Results, make_card
from interp_zoo.models import CAStream
from interp_zoo.models.pretrained import WEIGHTS_FILE, difference_in_form, differences, one_line

FILES = (WEIGHTS_FILE, "config.json", "README.md")
# Where weights come from when a model is made: the published ones do not come from there.
_NOT_KEPT = ("backbone_pretrained", "init")


@dataclass(frozen=True)
class Published:
    """What `publish` did: the repository's address, and the commit."""

    url: str
    commit: str


def prepare(
    model: nn.Module,
    repo_id: str,
    folder: str | Path,
    *,
    results: str | Path | None = None,
    license: str | None = None,
    base_model: str | None = None,
) -> list[Path]:
    """Writes what a repository of the Hub holds: `model.safetensors`, timm's `config.json` and the card `README.md`.

    The folder can be used as it is: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Args:
        model: a model of a registered timm architecture.
        repo_id: "user/name" on the Hub, for the card.
        folder: where to write; made if needed, its files of these names replaced.
        results: a results file (see `interp_zoo.cards.Results`), whose figures go on the card. Without one the card
            says that nothing was measured.
        license: the licence's name on the Hub; by default that of the model's `pretrained_cfg`.
        base_model: the Hub's name of the model that training started from; by default what the results file says.

    Returns:
        The files.

    Raises:
        ValueError: if timm could not make the model anew, only its backbone is trained, or its weights are not finite;
            if the results file is of another architecture, or not as it should be.
        FileNotFoundError: if the results file does not exist.
    """
    _check_repo_id(repo_id)
    _check_model(model)
    measured = Results.read(results) if results else Results()
    architecture = model.pretrained_cfg["architecture"]  # type: ignore[index]
    if results and measured.model.partition(".")[0] != architecture:
        raise ValueError(f'`results` are of "{measured.model}", not of "{architecture}": give this model\'s own')
    text = make_card(model, f"hf-hub:{repo_id}", measured, license=license, base_model=base_model)
    folder = Path(folder)
    write_weights(model, folder)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return [folder / name for name in FILES]


def write_weights(model: nn.Module, folder: Path) -> None:
    """Writes `model.safetensors` and timm's `config.json`: all that "local-dir:FOLDER" is, as the name of a model.

    Each file is the old one or the new one, whenever the machine stops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".new") as new:
        save_for_hf(_lasting(model), new, safe_serialization=True)
        for name in FILES[:2]:
            (Path(new) / name).replace(folder / name)


def publish(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool = False,
    update: bool = False,
    token: str | None = None,
    message: str = "Add model",
    results: str | Path | None = None,
    license: str | None = None,
    base_model: str | None = None,
) -> Published:
    """Writes a model's files (see `prepare`) and pushes them to the Hub, all in one commit.

    Args:
        model: a model of a registered timm architecture.
        repo_id: "user/name"; made if it is not there.
        private: whether a new repository is private.
        update: whether files of a repository that holds some already are replaced.
        token: a token with the right to write; by default the one that `hf auth login` saved, or HF_TOKEN.
        message: the commit's.
        results: as for `prepare`, like the next two.
        license: the card's.
        base_model: the card's.

    Raises:
        FileExistsError: if the repository holds files already, and `update` is not set; or if it is there, and public,
            with `private`.
        PermissionError: if the token is not accepted.
        ConnectionError: if the Hub cannot be reached, or the push dies half-way: the same call can be made again.
        ValueError: as for `prepare`, or if the Hub does not accept the card.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepare(model, repo_id, folder, results=results, license=license, base_model=base_model)
        api = HfApi(token=token, library_name="interp_zoo")
        try:
            made = api.create_repo(repo_id, private=private, exist_ok=True)
            if private and not api.model_info(repo_id).private:
                raise FileExistsError(
                    f'`private` was said, but "{repo_id}" is there already, and public: choose another'
                )
            there = set(api.list_repo_files(repo_id)) - {".gitattributes"}
            if there and not update:
                raise FileExistsError(
                    f'`repo_id` "{repo_id}" holds {len(there)} files already: choose another name, or set `update`'
                )
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        except FileExistsError:
            raise
        except HfHubHTTPError as error:
            raise _explained(error, repo_id) from error
        except (OSError, HTTPError, RuntimeError, JSONDecodeError) as error:
            raise ConnectionError(_failed(repo_id, one_line(error))) from error
        except ValueError as error:  # the client asks the Hub about the card before it sends anything
            raise ValueError(f"the Hub does not accept the card: {one_line(error)}") from error
    return Published(str(made), commit.oid)


def _explained(error: HfHubHTTPError, repo_id: str) -> OSError:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return PermissionError(
            f'`token` is not accepted for "{repo_id}" (status {status}): log in with "hf auth login", or set HF_TOKEN '
            "to a token with the right to write there"
        )
    return ConnectionError(_failed(repo_id, one_line(error)))


def _failed(repo_id: str, why: str) -> str:
    return (
        f'the push to "{repo_id}" failed ({why}); it is one commit, so that the repository has all of it or nothing: '
        "run the same again"
    )


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f'`repo_id` is "{repo_id}": {one_line(error)}') from None
    if repo_id.count("/") != 1:
        raise ValueError(f'`repo_id` is "{repo_id}", but must be "user/name"')


def _lasting(model: nn.Module) -> nn.Module:
    """The model as timm writes it down: without what only its making needed, its tensors as safetensors takes them."""
    twin: Any = copy.copy(model)
    arguments: dict[str, Any] = getattr(model, "_model_args", {})
    twin._model_args = {k: v for k, v in arguments.items() if k not in _NOT_KEPT}
    twin.state_dict = lambda: {k: v.contiguous() for k, v in model.state_dict().items()}  # not channels last, for one
    lasting: nn.Module = twin
    return lasting


def _check_model(model: nn.Module) -> None:
    """Refuses what timm could not make anew from an architecture's name."""
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    architecture = cfg.get("architecture")
    if not architecture or not is_model(architecture):
        raise ValueError(
            f"`model` is a {type(model).__name__} of no registered timm architecture, so that nobody could load it by "
            "name: register one with timm.models.register_model"
        )
    if not hasattr(model, "num_classes"):
        raise ValueError(
            f"`model` is a {type(model).__name__}, not a classifier: publish the model that it was made of"
        )
    arguments = {**getattr(_lasting(model), "_model_args", {}), "num_classes": model.num_classes}
    with torch.device("meta"):
        plain = timm.create_model(architecture, **arguments)
    broken = [name for name, tensor in model.state_dict().items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(f"`model` has weights that are not finite in {broken[0]}: train it anew")
    if isinstance(model, CAStream) and model.stream.untrained:
        raise ValueError("`model` has a stream that is not trained, only its backbone is: train it, then publish it")
    wrong = differences(model.state_dict(), plain) or difference_in_form(model, plain)
    if wrong:
        raise ValueError(f'`model` is not what timm makes of "{architecture}", so that nobody could load it: {wrong}')
