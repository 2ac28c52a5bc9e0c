"""The ported networks once more, in PyTorch from their published tables: an independent second opinion.

    python tests/evaluation/torch_networks.py efficientnet_lite0 STATE.pth PICTURES.npy OUT.npz --size 96
    python tests/evaluation/torch_networks.py inception_v3 - - tests/evaluation/inception_v3.json

writes what every convolution of the network (after its normalisation), "features" and "logits" make of
pictures (B, H, W, C) in [-1, 1], channels last; as .json only a summary, and the shapes of the state. STATE
is a state dict as .pth or .npz; "-" draws it and the pictures by `random_state`. Needs PyTorch and NumPy
alone; no test imports it.
"""

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
from random_state import random_images, random_state, summary
from torch import nn

LITE0 = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class SameConv2d(nn.Conv2d):
    """Padded as TensorFlow does: what is odd goes to the end."""

    def forward(self, x):
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, None, self.stride, groups=self.groups)


class MBConv(nn.Module):
    def __init__(self, inputs, kernel, stride, expansion, outputs):
        super().__init__()
        width = inputs * expansion
        if expansion > 1:
            self._expand_conv = SameConv2d(inputs, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, eps=1e-3)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self._project_conv = SameConv2d(width, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_bn0") else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    def __init__(self):
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, inputs = [], 32
        for kernel, stride, expansion, outputs, repeats in LITE0:
            for repeat in range(repeats):
                blocks.append(MBConv(inputs, kernel, 1 if repeat else stride, expansion, outputs))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, images, size):
        x = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        x = (127.5 * (x + 1) - 127) / 128
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        features = F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return features, self._fc(features)

    def layer(self, name):
        """Our name of a normalisation, None for what is no such layer."""
        block, _, rest = name.rpartition(".")
        if not block:
            return {"_bn0": "stem", "_bn1": "head"}.get(name)
        kind = {"_bn0": "expand", "_bn1": "depthwise", "_bn2": "project"}.get(rest)
        return kind and f"block{block.removeprefix('_blocks.')}_{kind}"


class Unit(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def add_chain(module, name, inputs, *units):
    """Units name_1, name_2, ... (or `name` alone) of (outputs, kernel, stride, padding)."""
    for number, (outputs, *rest) in enumerate(units, 1):
        setattr(module, f"{name}_{number}" if len(units) > 1 else name, Unit(inputs, outputs, *rest))
        inputs = outputs


def run_chain(module, name, x):
    for number in range(1, 6):
        if hasattr(module, f"{name}_{number}"):
            x = getattr(module, f"{name}_{number}")(x)
    return x


def mean_pool(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


ROW, COLUMN = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))


class InceptionA(nn.Module):
    def __init__(self, inputs, pooled):
        super().__init__()
        add_chain(self, "branch1x1", inputs, (64, 1))
        add_chain(self, "branch5x5", inputs, (48, 1), (64, 5, 1, 2))
        add_chain(self, "branch3x3dbl", inputs, (64, 1), (96, 3, 1, 1), (96, 3, 1, 1))
        add_chain(self, "branch_pool", inputs, (pooled, 1))

    def forward(self, x):
        chains = [run_chain(self, name, x) for name in ("branch5x5", "branch3x3dbl")]
        return torch.cat([self.branch1x1(x), *chains, self.branch_pool(mean_pool(x))], 1)


class InceptionB(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        add_chain(self, "branch3x3", inputs, (384, 3, 2))
        add_chain(self, "branch3x3dbl", inputs, (64, 1), (96, 3, 1, 1), (96, 3, 2))

    def forward(self, x):
        return torch.cat([self.branch3x3(x), run_chain(self, "branch3x3dbl", x), F.max_pool2d(x, 3, 2)], 1)


class InceptionC(nn.Module):
    def __init__(self, inputs, c):
        super().__init__()
        add_chain(self, "branch1x1", inputs, (192, 1))
        add_chain(self, "branch7x7", inputs, (c, 1), (c, *ROW), (192, *COLUMN))
        add_chain(self, "branch7x7dbl", inputs, (c, 1), (c, *COLUMN), (c, *ROW), (c, *COLUMN), (192, *ROW))
        add_chain(self, "branch_pool", inputs, (192, 1))

    def forward(self, x):
        chains = [run_chain(self, name, x) for name in ("branch7x7", "branch7x7dbl")]
        return torch.cat([self.branch1x1(x), *chains, self.branch_pool(mean_pool(x))], 1)


class InceptionD(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        add_chain(self, "branch3x3", inputs, (192, 1), (320, 3, 2))
        add_chain(self, "branch7x7x3", inputs, (192, 1), (192, *ROW), (192, *COLUMN), (192, 3, 2))

    def forward(self, x):
        chains = [run_chain(self, name, x) for name in ("branch3x3", "branch7x7x3")]
        return torch.cat([*chains, F.max_pool2d(x, 3, 2)], 1)


class InceptionE(nn.Module):
    def __init__(self, inputs, pool):
        super().__init__()
        self.pool = pool
        row, column = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        self.branch1x1 = Unit(inputs, 320, 1)
        self.branch3x3_1 = Unit(inputs, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Unit(384, 384, *row), Unit(384, 384, *column)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(inputs, 448, 1), Unit(448, 384, 3, 1, 1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Unit(384, 384, *row), Unit(384, 384, *column)
        self.branch_pool = Unit(inputs, 192, 1)

    def forward(self, x):
        y = self.branch3x3_1(x)
        z = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        forks = [self.branch3x3_2a(y), self.branch3x3_2b(y), self.branch3x3dbl_3a(z), self.branch3x3dbl_3b(z)]
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(self.pool(x))], 1)


class InceptionV3(nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (
            InceptionA(192, 32),
            InceptionA(256, 64),
            InceptionA(288, 64),
        )
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b, self.Mixed_6c = InceptionC(768, 128), InceptionC(768, 160)
        self.Mixed_6d, self.Mixed_6e = InceptionC(768, 160), InceptionC(768, 192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280, mean_pool)
        self.Mixed_7c = InceptionE(2048, lambda x: F.max_pool2d(x, 3, 1, 1))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images, size):
        x = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        features = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        return features, features @ self.fc.weight.T

    def layer(self, name):
        return name.removesuffix(".bn") if name.endswith(".bn") else None


NETWORKS = {"efficientnet_lite0": EfficientNetLite0, "inception_v3": InceptionV3}


def load_state(network, path):
    if path == "-":
        return random_state(shapes(network))
    if path.endswith(".npz"):
        return dict(np.load(path))
    return {name: value.numpy() for name, value in torch.load(path).items()}


def shapes(network):
    kept = network.state_dict().items()
    return {name: tuple(value.shape) for name, value in kept if not name.endswith("num_batches_tracked")}


@torch.no_grad()
def activations(network, images, size):
    """Of every layer, channels last, by our names."""
    found = {}

    def keep(name):
        return lambda module, inputs, output: found.update({name: output.permute(0, 2, 3, 1).numpy()})

    for layer, module in network.named_modules():
        if name := network.layer(layer):
            module.register_forward_hook(keep(name))
    images = torch.as_tensor(images).permute(0, 3, 1, 2)
    features, logits = network(images, size)
    return {**found, "features": features.numpy(), "logits": logits.numpy()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    for argument in ("state", "images", "out"):
        parser.add_argument(argument)
    parser.add_argument("--size", type=int, default=299)
    options = parser.parse_args()
    network = NETWORKS[options.network]().eval()
    state = {name: torch.as_tensor(value) for name, value in load_state(network, options.state).items()}
    missing = network.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    images = random_images() if options.images == "-" else np.load(options.images)
    found = activations(network, images, options.size)
    if options.out.endswith(".json"):
        layers = {name: summary(values) for name, values in found.items()}
        with open(options.out, "w") as file:
            json.dump({"size": options.size, "shapes": shapes(network), "layers": layers}, file)
            file.write("\n")
    else:
        np.savez(options.out, **found)


if __name__ == "__main__":
    main()
