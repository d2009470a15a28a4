"""What comes out of an explanation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from torch import Tensor

from interp_zoo.explain import render, storing
from interp_zoo.files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

    from interp_zoo.explain.inputs import Picture, Preprocess

_LEAST_SAVED = 224  # pixels of the longer side: what is smaller nobody can look at


@dataclass(frozen=True)
class Cost:
    """What one map cost, on average over the call.

    Attributes:
        forward: forward passes of one picture through the whole network.
        backward: backward passes, through the network (Opti-CAM) or through its tail alone (gradients at the layer).
        tail: passes through the tail alone.
        seconds: wall-clock time.
    """

    forward: float
    backward: float
    tail: float
    seconds: float

    def __str__(self) -> str:
        parts = [(self.forward, "forward"), (self.backward, "backward"), (self.tail, "tail")]
        passes = " + ".join(f"{n:.4g} {word}" for n, word in parts if n)
        return f"{passes} passes, {self.seconds:.3g} s"


@dataclass(frozen=True, repr=False, eq=False)
class Explanation:
    """The maps of N rows, a row a picture and target.

    Attributes:
        saliency: (N, H, W), float32 in [0, 1], at the model's input size.
        raw: (N, h, w), float32, before rectifying, upsampling and scaling, at the layer's size: comparable across
            pictures.
        target: (N,), int64, the explained class; -1 for functions of the logits.
        label: N texts for it.
        probability: (N,), of the target on the picture; NaN for functions of the logits.
        masked_probability: (N,), the same on the picture under its map: near the first if the map holds what counts.
        picture: (N,), int64, which of the given pictures each row is about.
        name: N file names or URLs.
        method: the method's name.
        layer: where the model was cut; "picture" for methods that look at the picture itself.
        cost: passes and seconds for one map, on average.
        skipped: pictures that could not be read, and why.
    """

    saliency: Tensor
    raw: Tensor
    target: Tensor
    label: list[str]
    probability: Tensor
    masked_probability: Tensor
    picture: Tensor
    name: list[str]
    method: str
    layer: str
    cost: Cost
    skipped: dict[str, str] = field(default_factory=dict)
    _pictures: tuple[Picture, ...] = ()  # one a row
    _preprocess: Preprocess | None = None

    def __len__(self) -> int:
        return len(self.saliency)

    def __repr__(self) -> str:
        rows = ", ".join(
            f"{label} {p:.3f} -> {m:.3f}"
            for label, p, m in zip(
                self.label[:3], self.probability.tolist(), self.masked_probability.tolist(), strict=False
            )
        )
        more = f", and {len(self) - 3} more" if len(self) > 3 else ""
        return f"Explanation({self.method} at {self.layer}: {rows}{more}; {self.cost})"

    def overlay(self, on: Literal["input", "original"] = "input") -> Image | list[Image]:
        """The map over the picture: one image for one row, else a list.

        Args:
            on: over what the model saw, (H, W), or over the original picture at its own size, where what the model's
                crop left out stays as it is.

        Raises:
            ValueError: if `on` is neither, or "original" for a tensor, which has none.
        """
        images = [self._overlay(row, on) for row in range(len(self))]
        return images[0] if len(images) == 1 else images

    def save(self, path: str | Path) -> list[Path]:
        """Writes overlays, or maps and numbers; folders are made. A file is written whole or not at all.

        Args:
            path: one that ends in .npz gets all rows: maps, numbers, and the pictures as the model saw them; one that
                ends in .json gets all but these, as text. `load` reads both back. Else each row's overlay is written,
                over the original where there is one, to a file for one row; several rows get a number before the
                ending. What is smaller than 224 pixels is enlarged by a whole number, so that it can be looked at. A
                path without an ending is a folder, and each file in it is named after its picture, the method and,
                where needed, the row.

        Returns:
            The files written: one a row of overlays, else one.

        Raises:
            ValueError: if the ending is none of these.
        """
        path = Path(path)
        storing.check_ending(path)
        if storing.holds_numbers(path):
            storing.write(self, path)
            return [path]
        self._check_pictures()
        files = [self._file(path, row) for row in range(len(self))]
        for row, file in enumerate(files):
            file.parent.mkdir(parents=True, exist_ok=True)
            on = "input" if self._pictures[row].original is None else "original"
            image = self._overlay(row, on, least=_LEAST_SAVED)
            with replacing(file) as new:
                image.save(new, format=render.format_of(file))
        return files

    @classmethod
    def load(cls, path: str | Path) -> Explanation:
        """What `save` wrote to an .npz or .json file. Nothing in it is run.

        Pictures are as the model saw them: `overlay(on="original")` needs the picture itself, and from JSON there is no
        overlay at all.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds no explanation.
        """
        fields = storing.read(Path(path))
        return cls(**{**fields, "cost": Cost(**fields["cost"])})

    def _check_pictures(self) -> None:
        if not self._pictures:
            raise ValueError("this explanation was read from JSON, which holds no pictures: save it as .npz as well")

    def _overlay(self, row: int, on: str, least: int = 0) -> Image:
        self._check_pictures()
        picture = self._pictures[row]
        if on == "input":
            return render.overlay(render.to_image(picture.pixels), self.saliency[row], least=least)
        if on != "original":
            raise ValueError(f'`on` is "{on}", but must be "input" or "original"')
        if picture.original is None or self._preprocess is None:
            raise ValueError('`on` is "original", but there is no original of a tensor or a saved picture: use "input"')
        box = self._preprocess.box(picture.original.size)
        return render.overlay(picture.original, self.saliency[row], box, least=least)

    def _file(self, path: Path, row: int) -> Path:
        if path.suffix and not path.is_dir():
            return path if len(self) == 1 else path.with_name(f"{path.stem}_{row}{path.suffix}")
        stems = [_stem(name).replace(" ", "_") or "picture" for name in self.name]
        number = f"_{row}" if stems.count(stems[row]) > 1 else ""
        return path / f"{stems[row]}_{self.method}{number}.png"

    def _repr_png_(self) -> bytes | None:
        """Shows itself in a notebook: the overlays side by side (the first eight); as text without pictures."""
        if not self._pictures:
            return None
        return render.png(render.row([self._overlay(row, "input") for row in range(min(len(self), 8))]))


def _stem(name: str) -> str:
    """What a file is called after: the last part of a path or URL, without its ending."""
    if "://" not in name:
        return Path(name).stem
    parts = urlsplit(name)
    return PurePosixPath(parts.path).stem or parts.netloc.replace(":", "_")
