"""A model that was explained is the model that it was: module by module, to the bit, whatever happened half-way."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK, READ_TOKENS, lively, lively_ca
from torch import Tensor, nn
from torch.nn import functional as F

from interp_zoo import Explainer, explain, list_methods
from interp_zoo.explain.methods import get_method

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:map .* is blank:UserWarning")]

# Enough to get into the loop, in steps so small that half precision ends nearby.
OPTIONS: dict[str, dict[str, Any]] = QUICK | {"opticam": {"iterations": 4, "solver": "adam"}}
MODELS = {"cnn": "test_resnet", "vit": "test_vit", "ca": "test_resnet"}
REFUSED = {("vit", "cam"), ("ca", "cam"), ("cnn", "attention"), ("vit", "attention"), ("vit", "guided_backprop")}
REFUSED |= {("cnn", method) for method in READ_TOKENS}
EVERY = [(kind, method) for kind in ("cnn", "vit") for method in list_methods()]
EVERY += [("ca", method) for method in ("attention", "cam", "gradcam", "guided_backprop", "opticam", "reciprocam")]
# In-place activations, dense and residual connections, squeeze and excitation, caches that eval mode fills.
OTHERS = ["densenet121", "test_byobnet", "test_efficientnet", "mnasnet_small", "levit_128s", "in_place"]
PASSES = ["gradcam", "opticam", "reciprocam"]  # a tail backward, whole passes, tails alone
GRADIENTS_AND_TAILS = ["gradcam", "ablationcam", "opticam", "reciprocam"]


class Snapshot:
    """All there is to a model: for each module what its `vars` hold, each parameter and buffer with its content."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = {name: (module, dict(vars(module))) for name, module in model.named_modules()}
        self.dicts = {
            (name, key): list(value.items())
            for name, (_, state) in self.modules.items()
            for key, value in state.items()
            if isinstance(value, dict)
        }
        named = [*model.named_parameters(), *model.named_buffers()]
        self.tensors = {
            name: (t, facts(t), t.detach().clone(), t.grad if t.grad is None else t.grad.clone()) for name, t in named
        }

    def differences(self) -> list[str]:
        """What is another now, in words."""
        found = [f"module {name}" for name in {n for n, _ in self.model.named_modules()} ^ set(self.modules)]
        for name, (module, state) in self.modules.items():
            if list(vars(module)) != list(state):
                found.append(f"attributes of {name}: {set(vars(module)) ^ set(state) or 'another order'}")
            found += [f"{name}.{key}" for key, value in state.items() if vars(module).get(key) is not value]
        for (name, key), items in self.dicts.items():  # hooks in their order, parameters, buffers, children, caches
            now = list(vars(self.modules[name][0])[key].items())
            if [(k, id(v)) for k, v in now] != [(k, id(v)) for k, v in items]:
                found.append(f"content of {name}.{key}")
        for name, (tensor, was, values, gradient) in self.tensors.items():
            found += [f"{name}: {a} was {b}" for a, b in zip(facts(tensor), was, strict=True) if a != b]
            if not torch.equal(tensor.detach(), values):
                found.append(f"values of {name}")
            if gradient is not None and not (tensor.grad is not None and torch.equal(tensor.grad, gradient)):
                found.append(f"gradient of {name}")
        return found


def facts(t: Tensor) -> tuple[Any, ...]:
    place = (t.data_ptr(), t.stride(), t.shape, t.dtype, t.device, t._version)
    return *place, t.requires_grad, t.is_leaf, id(t.grad) if t.is_leaf else None


def world() -> dict[str, Any]:
    """What is global: modes, types, random states, hooks on all modules."""
    everywhere, of_numpy = nn.modules.module, np.random.get_state(legacy=False)["state"]
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "random": (torch.get_rng_state().numpy().tobytes(), hash(random.getstate())),
        "numpy": (of_numpy["key"].tobytes(), of_numpy["pos"]),
        "hooks": [len(getattr(everywhere, f"_global_{k}_hooks")) for k in ("forward", "forward_pre", "backward")],
    }


@contextmanager
def no_trace(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Fails if the block, which must not raise, changes anything of the model, of `x`, or of what is global."""
    snapshot, before, picture = Snapshot(model), world(), (x.detach().clone(), facts(x))
    yield
    assert world() == before
    assert snapshot.differences() == []
    assert torch.equal(x.detach(), picture[0])
    assert facts(x) == picture[1]


class InPlace(nn.Module):
    """A network of the kind of VGG, all of whose activations work in place, with batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 10
        parts: list[nn.Module] = []
        for before, after in ((3, 8), (8, 16), (16, 24)):
            parts += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.SiLU(inplace=True)]
        self.body = nn.Sequential(*parts, nn.Conv2d(24, 24, 3, 1, 1), nn.ReLU(inplace=True))
        self.head = nn.Sequential(nn.Linear(24, 12), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True))
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.head(self.body(x).mean((2, 3))))
        return logits


def built(kind: str, **options: Any) -> nn.Module:
    """A model in eval mode for pictures of 64 x 64 (LeViT: of 224 x 224)."""
    if kind == "in_place":
        torch.manual_seed(0)
        return InPlace().eval()
    name = MODELS.get(kind, kind)
    options |= {"img_size": 64} if name == "test_vit" else {}
    return (lively_ca if kind == "ca" else lively)(name, num_classes=10, **options)


def pictures(kind: str = "", n: int = 2) -> Tensor:
    size = 224 if "levit" in kind else 64
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def leaves(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if not list(m.children())]


def lived_in(model: nn.Module) -> nn.Module:
    """A model in the midst of its user's work: mixed modes, gradients, frozen parts, own hooks and overrides."""
    for i, module in enumerate(model.modules()):
        module.__dict__["training"] = i % 3 != 0
        if isinstance(getattr(module, "grad_checkpointing", None), bool):
            module.__dict__["grad_checkpointing"] = True
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        if i % 4 == 0:
            parameter.grad = torch.full_like(parameter, 0.1 * i)
    parts = leaves(model)
    for part in (parts[0], parts[len(parts) // 2], parts[-1]):
        part.register_forward_pre_hook(lambda _module, _args: None)
        part.register_forward_hook(lambda _module, _args, _kwargs, _output: None, with_kwargs=True)
        part.register_forward_hook(lambda _module, _args, output: 1.01 * output, prepend=True)
        part.__dict__["forward"] = functools.partial(type(part).forward, part)
    parts[-1].register_full_backward_hook(lambda _module, _inputs, _outputs: None)
    return model


def run(model: nn.Module, method: str, x: Tensor, target: Any = 3) -> Tensor:
    return explain(model, x, method, target=target, **OPTIONS.get(method, {})).saliency


class Broken(Exception):
    """What a model raises here."""


class Fuse:
    """Counts the calls of an early and a late layer together, and raises at one of them."""

    def __init__(self, model: nn.Module, error: type[BaseException] = Broken, at: int = -1) -> None:
        self.calls, self.at, self.error = 0, at, error
        for layer in (leaves(model)[len(leaves(model)) // 3], leaves(model)[-1]):
            layer.register_forward_hook(self)

    def __call__(self, *_args: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error("half-way")


@pytest.mark.parametrize(("kind", "method"), EVERY + [(k, m) for k in OTHERS for m in PASSES])
def test_after_a_call(kind: str, method: str) -> None:
    model, x = lived_in(built(kind)), pictures(kind)
    refused = pytest.raises(ValueError, match=f'`method` "{method}" (needs .*(average|ReLU)|shows what a CA|reads the)')
    for _ in range(2):  # the cut is looked for, then known
        with no_trace(model, x), refused if (kind, method) in REFUSED else nullcontext():
            run(model, method, x)


@pytest.mark.parametrize(("kind", "method"), EVERY)
def test_after_a_wrong_target(kind: str, method: str) -> None:
    model, x = lived_in(built(kind)), pictures()
    with no_trace(model, x), pytest.raises(ValueError, match="`target` is 10, but the model has 10 classes: 0 to 9"):
        run(model, method, x, target=10)
    del model.num_classes  # then it is the logits that tell, half-way
    with no_trace(model, x), pytest.raises(ValueError, match="`target` is 10, but the model has 10 classes: 0 to 9"):
        run(model, method, x, target=10)
    looks_at_none = method in ("attention", "attention_rollout", "eigencam") or get_method(method).floor
    if not looks_at_none and (kind, method) not in REFUSED:
        with no_trace(model, x), pytest.raises(ValueError, match="`target` must turn logits"):
            run(model, method, x, target=lambda logits: logits)


@pytest.mark.parametrize(("kind", "method"), [p for p in EVERY if p not in REFUSED])
def test_after_a_model_that_raises(kind: str, method: str) -> None:
    """Or is interrupted, as every other time here."""
    x, errors = pictures(), itertools.cycle((Broken, KeyboardInterrupt))
    model = lived_in(built(kind))
    fuse = Fuse(model)
    want = run(model, method, x)
    first, fuse.calls = fuse.calls, 0
    run(model, method, x)
    later = fuse.calls
    assert first > later > 0  # the difference went into finding the cut
    for at in sorted({1, (first - later) // 2, first - later, first}):
        fresh, error = lived_in(built(kind)), next(errors)
        Fuse(fresh, error, at)
        with no_trace(fresh, x), pytest.raises(error, match="half-way"):
            run(fresh, method, x)
    for at in sorted({1, 2, later // 2 + 1, later}):
        fuse.calls, fuse.at, fuse.error = 0, at, next(errors)
        with no_trace(model, x), pytest.raises(fuse.error, match="half-way"):
            run(model, method, x)
    fuse.at = -1
    assert torch.equal(run(model, method, x), want)


@pytest.mark.parametrize("kind", OTHERS)
def test_after_other_models_raise(kind: str) -> None:
    model, x = lived_in(built(kind)), pictures(kind)
    run(model, "opticam", x)
    fuse = Fuse(model)
    run(model, "opticam", x)
    for at in {1, 2, fuse.calls // 2, fuse.calls}:
        fuse.calls, fuse.at = 0, at
        with no_trace(model, x), pytest.raises(Broken, match="half-way"):
            run(model, "opticam", x)


@functools.cache
def usual(kind: str, method: str) -> Tensor:
    return run(built(kind), method, pictures())


def frozen(model: nn.Module, x: Tensor, method: str) -> Tensor:
    return run(model.requires_grad_(False), method, x)


def under_no_grad(model: nn.Module, x: Tensor, method: str) -> Tensor:
    with torch.no_grad(), no_trace(model, x):
        return run(model, method, x)


def under_inference_mode(model: nn.Module, x: Tensor, method: str) -> Tensor:
    with torch.inference_mode():
        return run(model, method, x.clone()).clone()


def in_training_mode(model: nn.Module, x: Tensor, method: str) -> Tensor:
    with no_trace(model.train(), x):
        return run(model, method, x)


def with_a_gradient_wanted(model: nn.Module, x: Tensor, method: str) -> Tensor:
    leaf = x.clone().requires_grad_()
    with no_trace(model, leaf):
        found = run(model, method, leaf)
    with no_trace(model, 2 * leaf):
        run(model, method, 2 * leaf)
    return found


@pytest.mark.parametrize("way", [frozen, under_no_grad, under_inference_mode, in_training_mode, with_a_gradient_wanted])
@pytest.mark.parametrize(("kind", "method"), [p for p in EVERY if p not in REFUSED])
def test_the_same_map_in_any_mode(kind: str, method: str, way: Callable[[nn.Module, Tensor, str], Tensor]) -> None:
    assert torch.equal(way(built(kind), pictures(), method), usual(kind, method))


def trained(kind: str, between: Callable[[nn.Module, Tensor], object]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Gradients and state after two steps with dropout and batch statistics, `between` forward, backward and step."""
    model, x = built(kind, drop_rate=0.3, drop_path_rate=0.2).train(), pictures(n=4)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(7)
    gradients: list[Tensor] = []
    for _ in range(2):
        loss = F.cross_entropy(model(x), torch.tensor([1, 2, 3, 4]))
        between(model, x)
        (0.5 * loss).backward(retain_graph=True)
        between(model, x)
        loss.backward()
        between(model, x)
        gradients += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimiser.step()
        optimiser.zero_grad()
    return gradients, model.state_dict()


@pytest.mark.parametrize("method", GRADIENTS_AND_TAILS)
@pytest.mark.parametrize("kind", MODELS)
def test_in_the_midst_of_training(kind: str, method: str) -> None:
    gradients, state = trained(kind, lambda model, x: run(model, method, x[:2]))
    want_gradients, want_state = trained(kind, lambda _model, _x: None)
    assert len(gradients) == len(want_gradients) > 20
    assert all(torch.equal(a, b) for a, b in zip(gradients, want_gradients, strict=True))
    assert [name for name, value in state.items() if not torch.equal(value, want_state[name])] == []


def test_no_stale_cache_stays() -> None:
    """LeViT caches its attention biases in eval mode, and drops them only when `train()` is called."""
    model, x = built("levit_128s").train(), pictures("levit")
    run(model, "gradcam", x)
    caches = [vars(m)["attention_bias_cache"] for m in model.modules() if "attention_bias_cache" in vars(m)]
    assert len(caches) > 5
    assert not any(caches)
    with torch.no_grad():
        model.eval()(x)
    assert all(caches)
    with no_trace(model, x):  # those that its user filled stay
        run(model, "gradcam", x)


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


def resident() -> int:
    """Bytes in memory; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def test_a_thousand_calls() -> None:
    models, x = [built(kind) for kind in MODELS], pictures(n=1)
    for model in 50 * models:
        run(model, "gradcam", x)
    tensors, size = live_tensors(), resident()
    with ExitStack() as checked:
        for model in models:
            checked.enter_context(no_trace(model, x))
        for model in 334 * models:
            run(model, "gradcam", x)
    assert live_tensors() <= tensors
    assert resident() - size < 2 * 2**20  # so that 6 kB a call of one kind are too many


def test_nothing_keeps_a_model_alive() -> None:
    model = built("vit")
    gone = weakref.ref(model)
    run(model, "gradcam", pictures())
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, functools.partial(torch.compile, backend="eager"), lambda m: nn.DataParallel(nn.DataParallel(m))],
    ids=["parallel", "compiled", "twice"],
)
def test_wrapped_models_are_unwrapped(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, x = built("cnn"), pictures()
    want, wrapped = run(model, "gradcam", x), wrap(model)
    assert Explainer(wrapped, "gradcam").model is model
    with no_trace(wrapped, x), no_trace(model, x):
        assert torch.equal(run(wrapped, "gradcam", x), want)


def alike(one: Tensor, other: Tensor) -> float:
    """The least correlation of two maps of a picture."""
    both = torch.stack([one.flatten(1), other.flatten(1)]).float()
    both = both - both.mean(2, keepdim=True)
    return F.cosine_similarity(both[0], both[1], dim=1).min().item()


@pytest.mark.parametrize("method", GRADIENTS_AND_TAILS)
@pytest.mark.parametrize("kind", MODELS)
def test_half_precision(kind: str, method: str) -> None:
    x, want = pictures(), usual(kind, method)
    half = built(kind).bfloat16()
    with no_trace(half, x):
        found = run(half, method, x)
    assert found.dtype == torch.float32
    assert alike(found, want) > 0.9
    model = built(kind)
    with no_trace(model, x):
        found = explain(model, x, method, target=3, amp="bf16", **OPTIONS.get(method, {})).saliency
    assert alike(found, want) > 0.9
