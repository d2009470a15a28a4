"""Names of a model's classes."""

from __future__ import annotations

import difflib
from functools import lru_cache
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from interp_zoo.explain.wrappers import hugging_face, networks


class Labels:
    """A model's class names: those of its `pretrained_cfg`, of Hugging Face's config, or of the timm network in it.

    Else those of the ImageNet subset of that many classes that timm knows. A network within a module of the user's may
    have another head than that module: how many classes there are, its logits tell (see `check`).

    Attributes:
        classes: how many classes the model says it has; 0 if it does not say.
    """

    def __init__(self, model: nn.Module) -> None:
        network = next(iter(networks(model)), None)
        its = None if network is model else hugging_face(model)
        classes = _classes(model, its, network)
        self._names = _names(its, network or model, 2 if classes == 1 else classes)
        sure = model in (its, network) or network is None
        self.classes = 0 if not sure else 2 if classes == 1 else classes  # one logit: no and yes
        self._by_name = False

    def check(self, classes: int) -> None:
        """Forgets names that are of another number of classes than the model has.

        Raises:
            ValueError: if a target was given by such a name.
        """
        if self._names and len(self._names) != classes:
            if self._by_name:
                raise ValueError(
                    f"`target` is a label of {len(self._names)} classes, but the model has {classes}: give indices"
                )
            self._names = ()
        self.classes = classes

    def name(self, index: int) -> str:
        """The first of a class' names ("tabby"), or "class 7" where the model's classes have no known names."""
        return self._names[index].split(",")[0] if self._names else f"class {index}"

    def index(self, label: str) -> int:
        """The class that a text names: one of its names in full, else the only one that contains the text.

        Raises:
            ValueError: if the model's classes have no known names, or none or several fit.
        """
        self._by_name = True
        if not self._names:
            raise ValueError(
                f'`target` is "{label}", but this model\'s classes have no known names: give a class index'
            )
        word = label.strip().lower()
        names = [[part.strip().lower() for part in name.split(",")] for name in self._names]
        exact = [i for i, parts in enumerate(names) if word in parts or word == ", ".join(parts)]
        found = exact or [i for i, parts in enumerate(names) if any(word in part for part in parts)]
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(f'"{self.name(i)}" ({i})' for i in found[:4])
            raise ValueError(
                f'`target` "{label}" fits {len(found)} classes ({some}, ...): give the full name or the index'
            )
        flat = {part: i for i, parts in reversed(list(enumerate(names))) for part in parts}
        near = ", ".join(f'"{n}" ({flat[n]})' for n in difflib.get_close_matches(word, list(flat), n=3, cutoff=0.5))
        hint = f"did you mean {near}?" if near else "give a class index"
        raise ValueError(f'`target` "{label}" is no class of this model: {hint}')


def _classes(model: nn.Module, its: nn.Module | None, network: nn.Module | None) -> int:
    """How many logits a model gives: its classifier's (which users replace), else what it says, else 0."""
    if its is not None:
        told: Any = its.config.num_labels  # type: ignore[union-attr]
        return told if isinstance(told, int) else 0
    network = network or model
    get = getattr(network, "get_classifier", None)
    out = getattr(get() if callable(get) else None, "out_features", None)
    told = out if isinstance(out, int) else getattr(network, "num_classes", 0)
    return told if isinstance(told, int) else 0


def _names(its: nn.Module | None, network: nn.Module, classes: int) -> tuple[str, ...]:
    texts = getattr(getattr(its, "config", None), "id2label", None)
    if isinstance(texts, dict) and set(texts) == set(range(classes)):
        if all(text == f"LABEL_{i}" for i, text in texts.items()):  # what stands there where nobody named them
            return ()
        return tuple(str(texts[i]) for i in range(classes))
    cfg = getattr(network, "pretrained_cfg", None) or {}
    names, described = cfg.get("label_names"), cfg.get("label_descriptions") or {}
    if names and len(names) == classes:
        return tuple(described.get(n, n) for n in names)
    subset = infer_imagenet_subset({"num_classes": classes})
    return _imagenet(subset) if subset else ()


@lru_cache(maxsize=4)
def _imagenet(subset: str) -> tuple[str, ...]:
    return tuple(ImageNetInfo(subset).label_descriptions())
