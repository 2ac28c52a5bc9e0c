"""Autoregressive models beside plain PyTorch: python experiments/benchmarks/autoregressive.py

"pictures" draws 16 binary pictures of 28x28 from a Gated PixelCNN of 6 layers and 32 channels, "sound" one
second, 8000 samples, from a WaveNet of 14 layers and 32 channels. "cached" is `sample`; "naive" runs the
whole network for every symbol, the only way without a cache: it is timed on its first symbols and multiplied,
since every symbol takes the same. "torch" is the naive way in PyTorch, of networks with the same layers.
"step" is a step of training (Adam) of 32 pictures, or of 4 sounds, in both; ours is in a loop, as in `fit`.
Contenders are processes of their own, which run in turn, round after round; all is float32, the median over
rounds, in seconds. Results go to autoregressive.json beside this file. All cores that the process may use are
used, `taskset -c 0` for one, or the GPU if there is one, with products in TensorFloat-32 in both.

PyTorch: `pip install torch`.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from train_step import machine

SIDE, NUM_PICTURES, WIDTH, DEPTH, FIRST, HEAD = 28, 16, 32, 6, 7, 64
RATE, SKIP, NUM_BLOCKS, NUM_LAYERS, CODES = 8000, 64, 2, 7, 256
TIMED_SYMBOLS = {"pictures": 20, "sound": 4}
BATCH = {"pictures": 32, "sound": 4}


def pictures(n):
    return 2 * np.random.default_rng(0).integers(0, 2, (n, SIDE, SIDE, 1)).astype(np.float32) - 1


def sound(n):
    return np.random.default_rng(0).uniform(-1, 1, (n, RATE)).astype(np.float32)


def in_jaxgen(kind):
    import jax
    import jax.numpy as jnp

    from jaxgen.autoregressive import pixelcnn, sequential, wavenet
    from jaxgen.values import Adam

    if kind == "pictures":
        network = pixelcnn.GatedPixelCNN(WIDTH, DEPTH, 3, FIRST, HEAD)
        family, shape, count = pixelcnn, (SIDE, SIDE, 1), NUM_PICTURES
        batch = {"image": jnp.asarray(pictures(BATCH[kind]))}
    else:
        network = wavenet.WaveNet(WIDTH, SKIP, NUM_BLOCKS, NUM_LAYERS)
        family, shape, count = wavenet, (RATE,), 1
        batch = {"audio": jnp.asarray(sound(BATCH[kind]))}
    cfg = family.Config(shape=shape, network=network, optimizer=Adam(1e-3))
    state = jax.jit(family.init, static_argnums=1)(jax.random.key(0), cfg)
    sample = jax.jit(family.sample, static_argnums=(2, 3))
    likelihood = sequential.likelihood(cfg)

    @jax.jit
    def naive(state, key):
        x = jnp.zeros((count, *sequential.layout(cfg)))

        def draw(t, x):
            inputs = likelihood.inputs(x)
            outputs, _ = sequential.network(cfg).apply({"params": state.ema}, inputs)
            drawn = likelihood.sample(jax.random.fold_in(key, t), {}, outputs[:, t])
            return x.at[:, t].set(drawn)

        return jax.lax.fori_loop(0, TIMED_SYMBOLS[kind], draw, x)

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state, steps):
        return jax.lax.fori_loop(0, steps, lambda _, s: family.train_step(s, batch, cfg)[0], state)

    current = [train(state, 1)]

    def step():
        current[0] = jax.block_until_ready(train(current[0], 1))

    return {
        "cached": lambda: jax.block_until_ready(sample(jax.random.key(1), current[0], count, cfg)),
        "naive": lambda: jax.block_until_ready(naive(current[0], jax.random.key(1))),
        "step": step,
    }


def in_torch(kind):
    import torch
    from torch import nn

    class Gated(nn.Module):
        """The layers of `pixelcnn.GatedPixelCNN`: rows above by the vertical stack, moved down by one."""

        def __init__(self):
            super().__init__()
            kernels = [FIRST] + [3] * (DEPTH - 1)
            sizes = [1] + [WIDTH] * (DEPTH - 1)
            # Rows above and the own one; to the left, in the first layer without the pixel itself.
            self.vertical = nn.ModuleList(
                nn.Conv2d(size, 2 * WIDTH, (k // 2 + 1, k)) for k, size in zip(kernels, sizes, strict=True)
            )
            self.horizontal = nn.ModuleList(
                nn.Conv2d(size, 2 * WIDTH, (1, k // 2 + (index > 0)), bias=False)
                for index, (k, size) in enumerate(zip(kernels, sizes, strict=True))
            )
            self.told = nn.ModuleList(nn.Conv2d(2 * WIDTH, 2 * WIDTH, 1) for _ in kernels)
            self.out = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1) for _ in kernels)
            self.head, self.last = nn.Conv2d(WIDTH, HEAD, 1), nn.Conv2d(HEAD, 1, 1)
            self.kernels = kernels

        def forward(self, x):
            v = h = x
            for index, k in enumerate(self.kernels):
                padded = nn.functional.pad(v, (k // 2, k // 2, k // 2, 0))
                v = self.vertical[index](padded)
                told = self.told[index](nn.functional.pad(v, (0, 0, 1, 0))[:, :, :-1])
                left = nn.functional.pad(h, (k // 2, 0, 0, 0))
                if not index:
                    left = left[..., :-1]
                signal, gate = (self.horizontal[index](left) + told).chunk(2, 1)
                inner = self.out[index](torch.tanh(signal) * torch.sigmoid(gate))
                h = h + inner if index else inner
                signal, gate = v.chunk(2, 1)
                v = torch.tanh(signal) * torch.sigmoid(gate)
            return self.last(torch.relu(self.head(torch.relu(h))))

    class Wave(nn.Module):
        """The layers of `wavenet.WaveNet`."""

        def __init__(self):
            super().__init__()
            self.dilations = [2**layer for layer in range(NUM_LAYERS)] * NUM_BLOCKS
            self.embedding = nn.Conv1d(CODES, WIDTH, 1)
            self.first = nn.Conv1d(WIDTH, WIDTH, 2)
            self.convs = nn.ModuleList(nn.Conv1d(WIDTH, 2 * WIDTH, 2, dilation=d) for d in self.dilations)
            self.skips = nn.ModuleList(nn.Conv1d(WIDTH, SKIP, 1) for _ in self.dilations)
            self.residuals = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 1) for _ in self.dilations[1:])
            self.hidden, self.last = nn.Conv1d(SKIP, SKIP, 1), nn.Conv1d(SKIP, CODES, 1)

        def forward(self, code):
            x = nn.functional.one_hot(code, CODES).float().transpose(1, 2)
            x = self.embedding(nn.functional.pad(x[..., :-1], (1, 0)))
            x, skip = self.first(nn.functional.pad(x, (1, 0))), 0
            for index, dilation in enumerate(self.dilations):
                signal, gate = self.convs[index](nn.functional.pad(x, (dilation, 0))).chunk(2, 1)
                z = torch.tanh(signal) * torch.sigmoid(gate)
                skip = skip + self.skips[index](z)
                if index + 1 < len(self.dilations):
                    x = x + self.residuals[index](z)
            return self.last(torch.relu(self.hidden(torch.relu(skip))))

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(device)
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.manual_seed(0)
    network = Gated() if kind == "pictures" else Wave()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    if kind == "pictures":
        x = torch.tensor(pictures(BATCH[kind])).permute(0, 3, 1, 2).contiguous()
        loss = lambda: nn.functional.binary_cross_entropy_with_logits(network(x), (x + 1) / 2)
    else:
        code = torch.tensor(((sound(BATCH[kind]) + 1) * 127.5).round().astype(np.int64))
        loss = lambda: nn.functional.cross_entropy(network(code), code)

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        finish()

    @torch.no_grad()
    def naive():
        if kind == "pictures":
            x = torch.zeros(NUM_PICTURES, 1, SIDE, SIDE)
            for t in range(TIMED_SYMBOLS[kind]):
                row, column = divmod(t, SIDE)
                x[:, 0, row, column] = 2 * torch.bernoulli(torch.sigmoid(network(x)[:, 0, row, column])) - 1
        else:
            code = torch.zeros(1, RATE, dtype=torch.int64)
            for t in range(TIMED_SYMBOLS[kind]):
                code[:, t] = torch.distributions.Categorical(logits=network(code)[..., t]).sample()
        finish()

    return {"naive": naive, "step": step}


CONTENDERS = {"jaxgen": in_jaxgen, "torch": in_torch}


def contender(name, kind):
    """A process: prepares, then times every function once for each line that it reads."""
    functions = CONTENDERS[name](kind)
    for function in functions.values():
        function()
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds = {}
        for what, function in functions.items():
            since = time.perf_counter()
            function()
            seconds[what] = time.perf_counter() - since
        print(json.dumps(seconds), flush=True)


def compare(kind, names, rounds):
    """Median seconds of each contender, {name: {what: seconds}}; naive sampling of all symbols."""
    command = [sys.executable, __file__, "--kind", kind, "--contender"]
    processes = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names
    }
    rows = {name: [] for name in names}
    for process in processes.values():
        assert process.stdout.readline() == "ready\n"
    for _ in range(rounds):
        for name, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            rows[name].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    symbols = {"pictures": SIDE**2, "sound": RATE}[kind]
    found = {}
    for name, measured in rows.items():
        found[name] = {what: statistics.median(row[what] for row in measured) for what in measured[0]}
        found[name]["naive"] *= symbols / TIMED_SYMBOLS[kind]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--kinds", nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        contender(options.contender, options.kind)
        return
    since, load = time.perf_counter(), os.getloadavg()[0]
    seconds = {kind: compare(kind, options.contenders, options.rounds) for kind in options.kinds}
    for kind, found in seconds.items():
        for name, measured in found.items():
            print(kind, name, {what: round(value, 4) for what, value in measured.items()})
    packages = ("jaxgen", "jax", "numpy", *(name for name in options.contenders if name != "jaxgen"))
    results = {
        "command": "python experiments/benchmarks/autoregressive.py",
        "minutes": round((time.perf_counter() - since) / 60, 1),
        "device": f"{machine()}, {len(os.sched_getaffinity(0))} of them used, load {load:.1f} before",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "seconds": seconds,
    }
    options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
