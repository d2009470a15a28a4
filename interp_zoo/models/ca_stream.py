"""CA-Stream: attention pooling in place of global average pooling, for any timm backbone.

Torres, Zhang, Sicre, Ayache and Avrithis, "CA-Stream: Attention-based pooling for interpretable image recognition",
CVPR XAI workshop 2024. Beside the network's layers runs a stream of cross-attention blocks: one learned query pools
the map A_l of each tapped layer, and what it pools becomes, through a linear layer, the query of the next,

    a_l = softmax(A_l q_l / sqrt(d_l))        over the p places of A_l, (p, d_l)
    q_{l+1} = W_l A_l^T a_l                   W_l with a bias; the keys and the values are the features themselves

The last query goes to the classifier in place of the average of the last map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from interp_zoo.models.taps import Layout, Taps
from interp_zoo.models.wrapping import input_shape, own_cfg, prefixed_groups
from interp_zoo.told import warn
from interp_zoo.untouched import untouched

T = TypeVar("T")
Init = Literal["identity", "paper"]

_INTERFACE = ("forward_features", "forward_head", "feature_info", "num_features", "num_classes")


class CABlock(nn.Module):
    """One block of the stream: pools places (B, p, dim) with a query (B, dim), and projects what it pooled.

    Args:
        dim: channels of the map and of the query.
        out: channels of the next query.
    """

    def __init__(self, dim: int, out: int, **factory: Any) -> None:
        super().__init__()
        self.scale = dim**-0.5
        self.softmax = nn.Softmax(dim=1)  # a module, so that the scores that go in can be watched
        self.proj = nn.Linear(dim, out, **factory)

    def attend(self, query: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The next query (B, out), and the attention (B, p), which sums to 1 over the places."""
        scores = torch.bmm(places, (query * self.scale)[:, :, None])[:, :, 0]  # scaled first: float16 ends at 65,504
        attention = self.softmax(scores)
        pooled = torch.bmm(attention[:, None], places)[:, 0]
        return self.proj(pooled), attention

    def forward(self, query: Tensor, places: Tensor) -> Tensor:
        """The next query, (B, out)."""
        return self.attend(query, places)[0]


class Stream(nn.Module):
    """The learned query and the blocks, one for each of the maps.

    Args:
        dims: channels of the maps, in the order in which the network computes them.
        init: "identity" starts at the backbone's own prediction: the last W is the identity without bias and the one
            before it is zero, so that the last query is zero, the attention uniform, and what is pooled the average.
            "paper" draws all W as the authors do (Xavier uniform). The first query is normal around 1 in either case,
            but for a single block, whose query "identity" sets to zero.
    """

    def __init__(self, dims: Sequence[int], *, init: Init = "identity", **factory: Any) -> None:
        super().__init__()
        if init not in ("identity", "paper"):
            raise ValueError(f'`init` is "{init}", but must be "identity" or "paper"')
        self.query = nn.Parameter(torch.empty(dims[0], **factory))
        blocks = [CABlock(dim, out, **factory) for dim, out in zip(dims, (*dims[1:], dims[-1]), strict=True)]
        self.blocks = nn.ModuleList(blocks)
        self._init(init, [block.proj for block in blocks])

    def _init(self, init: Init, layers: list[nn.Linear]) -> None:
        nn.init.normal_(self.query, mean=1.0, std=1.0)
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            if init == "identity":
                nn.init.zeros_(layer.bias)
        if init == "identity":
            nn.init.eye_(layers[-1].weight)
            nn.init.zeros_(layers[-2].weight if len(layers) > 1 else self.query)

    @property
    def untrained(self) -> bool:
        """Whether the stream is at the start that "identity" gives it."""
        blocks: Any = self.blocks
        start: Tensor = blocks[-2].proj.weight if len(blocks) > 1 else self.query
        return not bool(start.any())


class CAStream(nn.Module):
    """A timm backbone that is pooled by a cross-attention stream in place of its global average pooling.

    It has timm's whole model interface. `forward_features` returns tokens (B, 1 + h * w, C): the last block's query,
    then the places of the backbone's last map, as a transformer returns its class token and patches. `forward_head` is
    the last block and the backbone's own head, with its normalisation and dropout.

    Args:
        backbone: a timm model. It is kept as it is, as the attribute `backbone`.
        taps: the names of the layers whose maps the stream attends to before the backbone's last one, in order; by
            default the last layer of `feature_info` at each reduction.
        init: see `Stream`.

    Attributes:
        backbone: the network without the stream: `model.backbone(x)` is what it predicts.
        stream: all that is new.

    Raises:
        TypeError: if the backbone has not timm's interface, or several last maps, or a head that cannot read one place.
        ValueError: if a tap does not exist, or gives no map.

    The stream takes what a tapped layer itself returns: a hook of yours that changes it acts on the network alone.

    Warns:
        UserWarning: if the backbone's head does not read the average of its last map (but a class token, for one): the
            model then does not start at the backbone's predictions, and its classifier has to be trained, too.
    """

    num_prefix_tokens = 1  # the query, before the places
    output_fmt = "NLC"
    backbone: Any  # a module with timm's interface, for which there is no type

    def __init__(self, backbone: nn.Module, taps: Sequence[str] | None = None, *, init: Init = "identity") -> None:
        super().__init__()
        missing = [name for name in _INTERFACE if not hasattr(backbone, name)]
        if missing:
            raise TypeError(
                f"`backbone` is a {type(backbone).__name__} without timm's {', '.join(missing)}: give a timm model"
            )
        if isinstance(taps, str):
            raise TypeError(f'`taps` is "{taps}", but must be a list of layers\' names')
        self.backbone = backbone
        self.backbone_frozen = False
        self.pretrained_cfg = self.default_cfg = own_cfg(getattr(backbone, "pretrained_cfg", None) or {}, "backbone")
        self.feature_info = [{**i, "module": f"backbone.{i['module']}"} for i in self.backbone.feature_info]
        self.num_classes: int = self.backbone.num_classes
        self.num_features: int = self.backbone.num_features
        self.head_hidden_size: int = getattr(backbone, "head_hidden_size", self.num_features)
        if hasattr(backbone, "in_chans"):
            self.in_chans = self.backbone.in_chans
        shape, parameter = input_shape(backbone), next(backbone.parameters())
        picture = torch.arange(shape.numel(), device=parameter.device).sin()  # nowhere constant, and no draw
        x = picture.to(parameter.dtype).view(1, *shape)
        with untouched(backbone), torch.no_grad():  # which takes the probe's taps away, too
            self._taps = Taps(backbone, self._usable_taps(x) if taps is None else taps)
            final, maps = self._run(x)
            names = self._taps.names
            self._layouts = [self._layout(a, name) for a, name in zip((*maps, final), (*names, ""), strict=True)]
            averages = final.device.type == "meta" or self._averages(final)
        self._taps = Taps(backbone, names)
        dims = [layout.places(a).shape[2] for layout, a in zip(self._layouts, (*maps, final), strict=True)]
        self.stream = Stream(dims, init=init, device=parameter.device, dtype=parameter.dtype)
        self.tokens = nn.Identity()  # where all that is read afterwards goes through: a layer to cut at, and its name
        if not averages:
            warn(
                f"`backbone` is a {type(backbone).__name__} whose head does not read the average of its last map: "
                "the stream starts from another prediction than the backbone's, so train the classifier, too"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of normalised pictures (B, channels, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens (B, 1 + h * w, C): the last block's query, then the places of the last map, row by row."""
        return self._tokens(*self._run(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, classes) of what `forward_features` returns; with `pre_logits` what goes into the classifier."""
        return self._head(self.stream.blocks[-1](x[:, 0], x[:, 1:]), pre_logits=pre_logits)

    def forward_attention(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, classes) and the attention of each block, from one forward pass.

        The attention to a map is (B, h, w), to tokens (B, p); over the places it sums to 1.
        """
        final, maps = self._run(x)
        query = self.stream.query.repeat(x.shape[0], 1)
        found = []
        for i, a in enumerate((*maps, final)):
            block: Any = self.stream.blocks[i]
            query, attention = block.attend(query, self._places(i, a))
            found.append(attention.view(x.shape[0], *self._layouts[i].grid(a)))
        return self._head(query), found

    def maps(self, x: Tensor) -> list[Tensor]:
        """All that the stream reads: what the tapped layers return, and last the backbone's last map."""
        final, maps = self._run(x)
        return [*maps, final]

    def forward_maps(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, classes) of what `maps` returned, which a frozen backbone need not compute anew."""
        return self.forward_head(self._tokens(maps[-1], maps[:-1]))

    def forward_intermediates(
        self, x: Tensor, *args: Any, intermediates_only: bool = False, **kwargs: Any
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """What `forward_features` returns, and the backbone's intermediate features, with its own arguments.

        With `intermediates_only` or `stop_early` the stream is not run, and all is the backbone's.
        """
        run = partial(self.backbone.forward_intermediates, x, *args, **kwargs)
        if intermediates_only or kwargs.get("stop_early"):
            found: list[Tensor] | tuple[Tensor, list[Tensor]] = run(intermediates_only=intermediates_only)
            return found
        (final, intermediates), maps = self._tapped(run)
        return self._tokens(final, maps), intermediates

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        """Prunes the backbone for features alone, with its own arguments; the stream goes, too."""
        kept: list[int] = self.backbone.prune_intermediate_layers(*args, **kwargs)
        self._taps.remove()
        del self.stream
        return kept

    def get_classifier(self) -> nn.Module:
        """The backbone's classifier."""
        classifier: nn.Module = self.backbone.get_classifier()
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; none for 0 classes.

        Raises:
            ValueError: if another `global_pool` is asked for.
        """
        check_global_pool(global_pool)
        self.backbone.reset_classifier(num_classes)
        self.num_classes = num_classes

    def freeze_backbone(self, frozen: bool = True) -> CAStream:
        """Freezes the backbone, its classifier included, so that the stream alone is trained; returns the model.

        No weight of it gets a gradient, and it stays in eval mode whatever `train` is told: no BatchNorm statistic
        moves, and nothing is dropped. A classifier for other classes has to be trained, too:
        `model.get_classifier().requires_grad_()`, or reset it after this.
        """
        self.backbone_frozen = frozen
        self.backbone.requires_grad_(not frozen)
        return self.train(self.training)

    def train(self, mode: bool = True) -> CAStream:
        """Training mode on or off, as for any module; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.backbone_frozen:
            self.backbone.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        """The parameters that are not decayed: the backbone's own, and the first query."""
        own: set[str] = getattr(self.backbone, "no_weight_decay", set)()
        return {f"backbone.{name}" for name in own} | {"stream.query"}

    def group_matcher(self, coarse: bool = False) -> Any:
        """Patterns of parameter groups from the stem on; the stream is in the last one, with the classifier."""
        return prefixed_groups(self.backbone.group_matcher(coarse=coarse), "backbone")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Gradient checkpointing of the backbone."""
        self.backbone.set_grad_checkpointing(enable)

    def extra_repr(self) -> str:
        """The tapped layers, which no weight tells."""
        return f"taps={', '.join(self._taps.names)}"

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuses what `torch.jit.script` could not do."""
        raise RuntimeError(
            "a CA-Stream cannot be scripted, since it reads its backbone's layers through hooks: "
            "use torch.export, torch.compile or torch.jit.trace"
        )

    def _run(self, x: Tensor) -> tuple[Any, list[Any]]:
        """The backbone's last map, and the tapped ones."""
        return self._tapped(partial(self.backbone.forward_features, x))

    def _tapped(self, run: Callable[[], T]) -> tuple[T, list[Any]]:
        self._taps.open()
        try:
            return run(), self._taps.take()
        except BaseException:
            self._taps.drop()
            raise

    def _tokens(self, final: Tensor, maps: Sequence[Tensor]) -> Tensor:
        query = self.stream.query.repeat(final.shape[0], 1)
        for i, a in enumerate(maps):
            query = self.stream.blocks[i](query, self._places(i, a))
        places = self._places(-1, final)
        tokens: Tensor = self.tokens(torch.cat([query[:, None].to(places.dtype), places], 1))
        return tokens

    def _head(self, pooled: Tensor, *, pre_logits: bool = False) -> Tensor:
        """The backbone's head on a pooled vector (B, C): it reads a map of one place, whose average that is."""
        logits: Tensor = self.backbone.forward_head(self._layouts[-1].single(pooled), pre_logits=pre_logits)
        return logits

    def _places(self, index: int, a: Tensor | None) -> Tensor:
        if a is None:
            raise RuntimeError(
                f'the layer "{self._taps.names[index]}" was not run in this pass, but the stream taps it'
            )
        return self._layouts[index].places(a)

    def _usable_taps(self, x: Tensor) -> list[str]:
        """The last layers of `feature_info` at each reduction that give a map, but for one like the last map itself."""
        there = {name for name, _ in self.backbone.named_modules() if name}
        infos = [info for info in self.backbone.feature_info if info["module"] in there]  # some name none of theirs
        names = list({int(info["reduction"]): str(info["module"]) for info in infos}.values())
        self._taps = Taps(self.backbone, names)
        final, maps = self._run(x)
        layout = self._layout(final)
        usable = {name: a for name, a in zip(names, maps, strict=True) if isinstance(a, Tensor) and a.ndim in (3, 4)}
        if usable:
            name, last = list(usable.items())[-1]
            if self._layout(last, name).places(last).shape == layout.places(final).shape:
                del usable[name]
        return list(usable)

    def _layout(self, output: object, tap: str = "") -> Layout:
        if isinstance(output, Tensor) and output.ndim in (3, 4):
            known = {info["module"]: info["num_chs"] for info in self.backbone.feature_info}
            layout = Layout.of(
                output,
                channels=known.get(tap) if tap else self.num_features,
                prefix=getattr(self.backbone, "num_prefix_tokens", 0),
                channels_last=getattr(self.backbone, "output_fmt", "") == "NHWC",
            )
            if layout.places(output).shape[1] > 1:
                return layout
        shape = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        if not tap:
            raise TypeError(f"`backbone` gives {shape} and no single map or tokens to pool: take another backbone")
        found = "is not run" if output is None else f"gives {shape} and no map or tokens"
        raise ValueError(f'`taps` names "{tap}", which {found}: name another layer')

    def _averages(self, final: Tensor) -> bool:
        """Whether the backbone's head reads nothing of its last map but the average."""
        average = self._places(-1, final).mean(1)
        try:
            want = self.backbone.forward_head(final, pre_logits=True)
            found = self._head(average, pre_logits=True)
            self._head(average)
        except (RuntimeError, IndexError) as error:
            raise TypeError(f"`backbone` has a head that cannot read a single place: {error}") from error
        return found.shape == want.shape and torch.allclose(found, want, rtol=1e-2, atol=1e-3)


def check_global_pool(global_pool: str | None) -> None:
    """Refuses any pooling but the average, in whose place the stream is.

    Raises:
        ValueError: if another is asked for.
    """
    if global_pool not in (None, "avg"):
        raise ValueError(
            f'`global_pool` is "{global_pool}", but in a CA-Stream the stream pools: leave it out, '
            "or take the maps from forward_features or features_only=True"
        )
