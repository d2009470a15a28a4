"""Files and addresses that others made: nothing in them is run, and what is wrong with them is one line."""

from __future__ import annotations

import io
import json
import random
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import assert_one_line, lively, texture
from hubserver import listening
from PIL import Image
from safetensors.torch import save
from torch import nn

import interp_zoo
from interp_zoo.explain import decoding
from interp_zoo.explain.inputs import Preprocess, load
from interp_zoo.models.loading import create

MUTATED = 5_000  # of each kind


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out, repeated; the first ones, where sizes and types stand, more often."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(min(len(data), rng.choice((32, 128, len(data)))))
        what = rng.randrange(4)
        if what == 0:
            data[at] = rng.randrange(256)
        elif what == 1:
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1"))
        elif what == 2:
            del data[at : at + rng.randint(1, 40)]
        else:
            data[at:at] = data[at : at + rng.randint(1, 40)]
        if not data:
            return b""
    return bytes(data)


@pytest.mark.parametrize("part", range(4))
def test_mutated_pictures(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read, or skipped for a reason that is one line; no other error comes out."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)  # sizes that are mutated take their time below the limit
    rng = random.Random(part)
    preprocess = Preprocess(timm.create_model("test_resnet", num_classes=10))
    good = []
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO"):
        file = io.BytesIO()
        texture((16, 24)).save(file, kind)
        good.append(file.getvalue())
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        file = io.BytesIO()
        texture((16, 24)).save(file, kind, exif=exif)
        good.append(file.getvalue())
    read = 0
    path = tmp_path / "it.png"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about what it mends
        for n in range(MUTATED // 4):
            path.write_bytes(mutated(good[n % len(good)], rng))
            pictures, skipped = load([texture((4, 4)), path], preprocess)
            assert (pictures[1] is None) == bool(skipped)
            read += pictures[1] is not None
            assert all("\n" not in why and why for why in skipped.values())
    assert 0.05 < read / (MUTATED // 4) < 0.95  # else they were all broken, or none


def test_mutated_safetensors(tmp_path: Path) -> None:
    rng = random.Random(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    content = save(model.state_dict())
    path = tmp_path / "it.safetensors"
    wrong = 0
    for _ in range(MUTATED):
        path.write_bytes(mutated(content, rng))
        with pytest.raises(ValueError, match=r"^`checkpoint`") as error:  # what can be read is of another network
            create("test_resnet", checkpoint=path)
        assert_one_line(error.value)
        wrong += "is no safetensors file" in str(error.value)
    assert 0.2 < wrong / MUTATED < 1


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 100_000_001) + b"{" + b" " * 64,
        struct.pack("<Q", 2) + b"{}" + b"\0" * 100,
        struct.pack("<Q", 70) + b'{"a":{"dtype":"F32","shape":[4000000000,4000000000],"data_offsets":[0,4]}}'[:70],
        struct.pack("<Q", 20) + b"[" * 20,
        b"\x80\x04\x95",
        b"",
    ],
    ids=["2**62", "100 MB", "more data", "large shape", "nested", "pickle", "empty"],
)
def test_headers_of_safetensors(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    path.write_bytes(header)
    before = time.monotonic()
    with pytest.raises(ValueError, match=r"`checkpoint` .* is no safetensors file") as error:
        create("test_resnet", checkpoint=path)
    assert_one_line(error.value)
    assert time.monotonic() - before < 5


def test_exif_that_pillow_stumbles_over(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    """A text where a resolution should be: the picture is none the worse for it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    broken = bytearray(exif.tobytes())
    at = broken.index(struct.pack("<HH", 0x011A, 5)) if broken[6:8] == b"II" else broken.index(b"\x01\x1a\x00\x05")
    broken[at : at + 4] = broken[at : at + 4].replace(b"\x05", b"\x02")
    texture().save(tmp_path / "it.jpg", exif=bytes(broken))
    assert interp_zoo.explain(tiny_cnn, tmp_path / "it.jpg", "fakecam").saliency.shape == (1, 160, 160)


def test_pickles_are_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "it went off",))

    torch.save(Bomb(), tmp_path / "it.pth")
    (tmp_path / "it.safetensors").write_bytes((tmp_path / "it.pth").read_bytes())
    for name in ("it.pth", "it.safetensors"):
        with pytest.raises(ValueError, match=r"is no safetensors file.*pickled weights are not loaded") as error:
            create("test_resnet", checkpoint=tmp_path / name)
        assert_one_line(error.value)
    assert not (tmp_path / "it went off").exists()


@pytest.mark.parametrize("name", ["ca_resnet18", "resnet18"])
def test_a_config_names_no_other_file(name: str, tmp_path: Path) -> None:
    """A folder's config.json that points elsewhere: the folder's own weights are loaded, or none."""
    outside = tmp_path / "outside.pth"
    torch.save({"secret": torch.zeros(1)}, outside)
    folder = tmp_path / "model"
    model = lively(name, num_classes=3)
    interp_zoo.hub.write_weights(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {
        "file": "../outside.pth",
        "url": outside.as_uri(),
        "hf_hub_filename": "../outside.pth",
        "custom_load": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    again = create(f"local-dir:{folder}")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(OSError, match=r"there is no model\.safetensors in") as error:
        create(f"local-dir:{folder}")
    assert_one_line(error.value)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says that it is so large, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def test_decompression_bombs(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    """Pillow's limit is kept, and named."""
    (tmp_path / "bomb.png").write_bytes(bomb(60_000, 60_000))
    with pytest.raises(ValueError, match=r'bomb\.png" cannot be read: .*3600000000 pixels.* exceeds limit') as error:
        interp_zoo.explain(tiny_cnn, tmp_path / "bomb.png", "gradcam")
    assert_one_line(error.value)


class _Site(BaseHTTPRequestHandler):
    """Redirects to where it should not, drips, and pours."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.end_headers()
        try:
            for _ in range(10_000):
                self.wfile.write(b"\0" * (1 if self.path == "/drip" else 2**16))
                if self.path == "/drip":
                    time.sleep(0.02)
        except OSError:
            pass  # nobody listens any more

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with listening(_Site) as address:
        yield address


@pytest.mark.parametrize("to", ["file:///etc/hosts", "ftp://127.0.0.1/a.png", "gopher://x"])
def test_redirects_to_other_than_http(to: str, site: str, tiny_cnn: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"cannot be read: no answer \(.*[Rr]edirect") as error:
        interp_zoo.explain(tiny_cnn, f"{site}/to/{to}", "gradcam")
    assert_one_line(error.value)


def test_servers_that_never_end(site: str, tiny_cnn: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_URL_TOTAL_S", 0.3)
    with pytest.raises(ValueError, match=r"cannot be read: no whole answer in 0\.3 s"):
        interp_zoo.explain(tiny_cnn, f"{site}/drip", "gradcam")
    monkeypatch.setattr(decoding, "_URL_TOTAL_S", 60)
    with pytest.raises(ValueError, match="cannot be read: larger than 64 MiB"):
        interp_zoo.explain(tiny_cnn, f"{site}/pour", "gradcam")


def test_file_names_are_text(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    """Those in pages are in tests/evaluation/test_report.py."""
    name = "[red]<script>..%2f;rm -rf.png"
    texture().save(tmp_path / name)
    exp = interp_zoo.explain(tiny_cnn, tmp_path / name, "gradcam")
    assert exp.name == [str(tmp_path / name)]
    (written,) = exp.save(tmp_path / "out")
    assert written.parent == tmp_path / "out"
