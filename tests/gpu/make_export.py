"""Export a real architecture from PyTorch, with its weights in external data, for the build test on a GPU machine.

    python tests/gpu/make_export.py FOLDER        (needs torch, onnxscript and onnx; no GPU)

writes FOLDER/export.onnx with export.onnx.data, and input.npy. The model is a U-Net as image models have them:
convolutions with BatchNorm, downwards by pooling and upwards by transposed convolutions with skip connections,
and at its bottom a transformer block (LayerNorm, attention, GELU). Opset 17, which TensorRT 8.6 parses.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

INPUT, OUTPUT, OPSET = "image", "clean", 17
SHAPE = (2, 3, 128, 128)
_WIDTHS = (48, 96, 192, 384)


class Convs(nn.Sequential):
    """Two convolutions, each with BatchNorm and ReLU."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
        )


class Transformer(nn.Module):
    """One block of attention between all places of a feature map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        y = x.flatten(2).transpose(1, 2)
        places = height * width
        q, k, v = (
            self.qkv(self.norm1(y)).reshape(-1, places, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        )
        scores = torch.softmax(q @ k.transpose(-2, -1) * (channels // self.heads) ** -0.5, dim=-1)
        y = y + self.out((scores @ v).transpose(1, 2).reshape(-1, places, channels))
        y = y + self.mlp(self.norm2(y))
        return y.transpose(1, 2).reshape(-1, channels, height, width)


class UNet(nn.Module):
    """From an image to an image of the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(Convs(a, b) for a, b in zip((3, *_WIDTHS), _WIDTHS, strict=False))
        self.middle = Transformer(_WIDTHS[-1], 6)
        pairs = list(zip(reversed(_WIDTHS[1:]), reversed(_WIDTHS[:-1]), strict=True))
        self.widen = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(Convs(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(_WIDTHS[0], 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        skips, x = [], image
        for number, level in enumerate(self.down):
            x = level(x if number == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        x = self.middle(skips.pop())
        for widen, level in zip(self.widen, self.up, strict=True):
            x = level(torch.cat([widen(x), skips.pop()], dim=1))
        return image + self.head(x)


def make_model() -> UNet:
    """The model with made-up weights, its BatchNorms as after some training."""
    torch.manual_seed(0)
    model = UNet()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def main(folder: str) -> None:
    """Write the export and an input."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    torch.onnx.export(
        make_model(),
        (image,),
        str(root / "export.onnx"),
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        dynamic_shapes={INPUT: {0: "n"}},
        dynamo=True,
        external_data=True,
    )
    np.save(root / "input.npy", image.numpy())


if __name__ == "__main__":
    main(sys.argv[1])
