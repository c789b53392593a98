"""Exports of real architectures by both of PyTorch's exporters, small and with random weights.

They need torch (the CPU build will do), onnxscript and transformers, which the package's own tests do not install.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # configurations are made here; nothing is to be fetched
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript, which PyTorch's exporter needs, is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from .models import Canonical, check_file, nodes, run  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # those of three other projects
nn = torch.nn
functional = torch.nn.functional


class First(nn.Module):  # type: ignore[misc, name-defined]
    """The first output of a model from transformers."""

    def __init__(self, inner: Any, **options: Any) -> None:
        super().__init__()
        self.inner, self.options = inner, options

    def forward(self, x: Any) -> Any:
        return self.inner(x, return_dict=True, **self.options)[0]


class Attention(nn.Module):  # type: ignore[misc, name-defined]
    """Self-attention over the pixels of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Any) -> Any:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, 1, c, h * w).unbind(1)
        mixed = functional.scaled_dot_product_attention(*(n.transpose(-1, -2) for n in (q, k, v)))
        return x + self.out(mixed.transpose(-1, -2).reshape(b, c, h, w))


class Residual(nn.Module):  # type: ignore[misc, name-defined]
    """Two convolutions, told the time step between them."""

    def __init__(self, inside: int, outside: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(outside), nn.Conv2d(outside, outside, 3, padding=1)
        self.time, self.skip = nn.Linear(time, outside), nn.Conv2d(inside, outside, 1)

    def forward(self, x: Any, t: Any) -> Any:
        y = self.conv1(functional.silu(self.norm1(x))) + self.time(t)[:, :, None, None]
        return self.skip(x) + self.conv2(functional.silu(self.norm2(y)))


class UNet(nn.Module):  # type: ignore[misc, name-defined]
    """A denoiser as diffusion models have it: down, attention, up by a transposed convolution and by resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(-torch.arange(8) / 2.0))
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.down1, self.pool1 = Residual(16, 16, 16), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.down2, self.pool2 = Residual(32, 32, 16), nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.middle = Attention(32)
        self.up2, self.mix2 = nn.Sequential(nn.ConvTranspose2d(32, 32, 2, stride=2), nn.BatchNorm2d(32)), Residual(64, 32, 16)  # fmt: skip
        self.up1, self.mix1 = nn.Upsample(scale_factor=2.0), Residual(48, 16, 16)
        self.out = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Any) -> Any:
        angles = x.mean((1, 2, 3))[:, None] * self.frequencies
        t = torch.cat((angles.sin(), angles.cos()), 1)
        a = self.down1(self.stem(x), t)
        b = self.down2(self.pool1(a), t)
        y = self.middle(self.pool2(b))
        y = self.mix2(torch.cat((self.up2(y), b), 1), t)
        return self.out(self.mix1(torch.cat((self.up1(y), a), 1), t))


class Recurrent(nn.Module):  # type: ignore[misc, name-defined]
    """A recurrent layer of two levels in both directions, and a linear one."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.layers, self.out = kind(12, 10, 2, bidirectional=True, batch_first=True), nn.Linear(20, 5)

    def forward(self, x: Any) -> Any:
        return self.out(self.layers(x)[0])


class Generator(nn.Module):  # type: ignore[misc, name-defined]
    """Grouped transposed convolutions with norms, a norm of one dimension, and one that follows no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(12, 64),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Unflatten(1, (16, 2, 2)),
            nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 3, 3, padding=1, groups=1),
        )

    def forward(self, x: Any) -> Any:
        return self.net(x).tanh()


class Doubles(nn.Module):  # type: ignore[misc, name-defined]
    """A part that computes in float64, as scientific code does by accident."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 40, dtype=torch.float64))
        self.out = nn.Linear(40, 7)

    def forward(self, x: Any) -> Any:
        return self.out((x.double() * self.table + self.table.cumsum(0)).float())


def _image(size: int) -> Callable[[], Any]:
    return lambda: torch.randn(2, 3, size, size)


def _ids() -> Any:
    return torch.randint(0, 90, (2, 8))


def _resnet() -> Any:
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="bottleneck")
    return First(transformers.ResNetModel(config))


def _convnext() -> Any:
    return First(transformers.ConvNextModel(transformers.ConvNextConfig(hidden_sizes=[16, 24, 32, 40], depths=[1] * 4)))


def _mobilenet() -> Any:
    return First(transformers.MobileNetV2Model(transformers.MobileNetV2Config(depth_multiplier=0.25)))


def _vit() -> Any:
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8)  # fmt: skip
    return First(transformers.ViTModel(config))


def _bert() -> Any:
    config = transformers.BertConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=40)  # fmt: skip
    return First(transformers.BertModel(config))


def _gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=40, bos_token_id=1, eos_token_id=1)  # fmt: skip
    return First(transformers.GPT2LMHeadModel(config), use_cache=False)


def _swin() -> Any:
    config = transformers.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)  # fmt: skip
    return First(transformers.SwinModel(config))


ARCHITECTURES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "resnet": (_resnet, _image(64)),
    "convnext": (_convnext, _image(64)),
    "mobilenet": (_mobilenet, _image(64)),
    "vit": (_vit, _image(32)),
    "swin": (_swin, _image(32)),
    "bert": (_bert, _ids),
    "gpt2": (_gpt2, _ids),
    "unet": (UNet, _image(16)),
    "lstm": (lambda: Recurrent(nn.LSTM), lambda: torch.randn(2, 6, 12)),
    "gru": (lambda: Recurrent(nn.GRU), lambda: torch.randn(2, 6, 12)),
    "generator": (Generator, lambda: torch.randn(3, 12)),
    "doubles": (Doubles, lambda: torch.randn(2, 40)),
}
#: What PyTorch 2.13 cannot export from transformers 5.
_NOT_EXPORTED = {("gpt2", False)}


def _export(folder: Path, name: str, dynamo: bool, **options: Any) -> tuple[Path, dict[str, Any], Any]:
    """The exported file in a folder of its own, an input, and what PyTorch makes of it."""
    logging.disable(logging.WARNING)
    try:
        torch.manual_seed(3)
        made, inputs = ARCHITECTURES[name]
        module, x = made().eval(), inputs()
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                for tensor, low in ((layer.weight, 0.5), (layer.running_var, 0.5), (layer.bias, -0.5), (layer.running_mean, -0.5)):  # fmt: skip
                    tensor.data.uniform_(low, low + 1)
        folder.mkdir()
        path = folder / "m.onnx"
        if dynamo:
            options = {"verbose": False, **options}
        else:
            # as it is: by default this exporter folds norms itself
            options = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False, **options}
        with torch.no_grad():
            expected = module(x).numpy()
            torch.onnx.export(module, (x,), str(path), dynamo=dynamo, input_names=["x"], **options)
    finally:
        logging.disable(logging.NOTSET)
    return path, {"x": x.numpy()}, expected


def _compare(folder: Path, path: Path, feeds: dict[str, Any], expected: Any) -> Canonical:
    """The canonical form; it computes what the export computes, and what PyTorch computes."""
    made = check_file(folder, path, check=True, input_shapes={"x": feeds["x"].shape})
    assert made.report.check.done, made.report.check.reason
    assert made.report.batch_norms_left == 0 and "BatchNormalization" not in {n.op_type for n in nodes(made.model.graph)}  # fmt: skip
    exported, canonical = run(path, feeds)[0], run(made.path, feeds)[0]
    size = np.linalg.norm(exported)
    assert np.linalg.norm(exported - canonical) <= 1e-5 * size
    assert np.linalg.norm(expected - canonical) <= 1e-3 * size
    return made


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_an_architecture(tmp_path: Path, name: str, dynamo: bool) -> None:
    """Same results; norms are gone, weights are named, nothing is in nodes."""
    if (name, dynamo) in _NOT_EXPORTED:
        pytest.skip("PyTorch does not export it")
    path, feeds, expected = _export(tmp_path / "given", name, dynamo)
    source = onnx.load(str(path))
    norms = sum(n.op_type == "BatchNormalization" for n in nodes(source.graph))
    made = _compare(tmp_path, path, feeds, expected)
    assert made.report.folded + made.report.scaled == norms
    if name in ("resnet", "mobilenet", "generator") and not dynamo:
        assert norms > 0
    if name == "doubles":
        assert made.report.float64 is not None


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_weights_in_external_data(tmp_path: Path, dynamo: bool) -> None:
    """The same canonical form as that of one file, bit for bit."""
    path, feeds, expected = _export(tmp_path / "given", "resnet", dynamo, external_data=True)
    if not dynamo:  # this exporter goes out of one file only beyond 2 GB
        onnx.save_model(onnx.load(str(path)), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert len(list(path.parent.iterdir())) == 2
    made = _compare(tmp_path, path, feeds, expected)
    one = tmp_path / "one"
    (one / "given").mkdir(parents=True)
    onnx.save_model(onnx.load(str(path)), one / "given/m.onnx")
    again = check_file(one, one / "given/m.onnx", check=False)
    for file in made.path.parent.iterdir():
        assert (again.path.parent / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", ["resnet", "unet"])
def test_an_export_that_was_not_optimised(tmp_path: Path, name: str) -> None:
    """The newer exporter leaves norms and Constant nodes in then, and computes the bias of convolutions that have none."""
    path, feeds, expected = _export(tmp_path / "given", name, True, optimize=False)
    made = _compare(tmp_path, path, feeds, expected)
    assert made.report.folded + made.report.scaled > 0 and made.report.hoisted > 0
