"""Denoising diffusion as jaxgen runs it, served to `unet.py`.

Weights and gradients go out as PyTorch lays them out, under the names that they have in `diffusers`.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from train_step import NUM_BATCHES, serve
from unet import CHECKED, SAMPLERS, SAMPLES, stopwatch

from jaxgen.diffusion import ddpm, edm, networks, samplers
from jaxgen.run import directory

BLOCK = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "Dense_0": "time_emb_proj",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {"GroupNorm_0": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}


class Side:
    """`jaxgen.diffusion.ddpm` of one config, and the samplers of `edm` on the same network."""

    def __init__(self, sizes, variant, threads):
        del variant, threads  # XLA has as many threads as there are cores to use
        self.sizes = sizes
        width = sizes.hidden[0]
        network = networks.UNet(width, tuple(channels // width for channels in sizes.hidden))
        self.cfgs = {
            "ddpm": ddpm.Config(shape=sizes.shape, network=network),
            "edm": edm.Config(shape=sizes.shape, network=network),
        }
        self.cfg = self.cfgs["ddpm"]
        generator = np.random.default_rng(0)
        state = jax.jit(ddpm.init, static_argnums=1)(jax.random.key(0), self.cfg)
        # Away from the start, at which many layers give 0.
        noisy = lambda a: a + 0.05 * generator.normal(size=a.shape).astype(np.float32)
        params = jax.tree.map(noisy, state.params)
        self.state = state._replace(params=params, ema=jax.tree.map(jnp.copy, params))
        images = generator.uniform(-1, 1, (NUM_BATCHES, sizes.batch_size, *sizes.shape))
        self.images = jnp.asarray(images, jnp.float32)
        self.compiled = {}

    def compile(self, name):
        """Wall-clock and CPU seconds until the step or a sampler can run."""
        return stopwatch(self._compile, name)

    def _compile(self, name):
        function, arguments = functools.partial(self._draw, name), (jax.random.key(0), self.state)
        if name == "step":
            function, arguments = self._many, (self.state, self.images, jnp.int32(1))
        donated = 0 if name == "step" else ()
        self.compiled[name] = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()

    def _many(self, state, images, count):
        """Steps in a loop, as `jaxgen.fit` makes them."""

        def step(_, state):
            return ddpm.train_step(state, {"image": images[state.step % NUM_BATCHES]}, self.cfg)[0]

        return lax.fori_loop(0, count, step, state)

    def _draw(self, name, key, state, count=SAMPLES):
        steps = SAMPLERS[name]
        if name == "edm_heun":
            return edm.sample(key, state, count, self.cfgs["edm"], steps=steps)
        values = {"ddim": samplers.DDIM, "ddpm": samplers.DDPM, "dpm_solver_pp": samplers.DPMSolverPP}
        return ddpm.sample(key, state, count, self.cfg, sampler=values[name](steps))

    def seconds(self, name):
        """Wall-clock and CPU seconds of a training step ("step"), or of `SAMPLES` draws."""
        return stopwatch(self._train if name == "step" else functools.partial(self._sample, name))

    def _train(self):
        self.state = jax.block_until_ready(self.compiled["step"](self.state, self.images, jnp.int32(1)))

    def _sample(self, name):
        jax.block_until_ready(self.compiled[name](jax.random.key(1), self.state))

    def export(self, path):
        """Write weights, inputs, and the predictions, loss, gradients and samples to be reproduced."""
        image = self.images[0, :CHECKED]
        noise, start = np.random.default_rng(1).normal(size=(2, *image.shape)).astype(np.float32)
        t = np.int32(self.cfg.num_steps * (0.5 + np.arange(CHECKED) / CHECKED) % self.cfg.num_steps)
        draws = {"normal": lambda *_: jnp.asarray(noise), "uniform": lambda *_: 0.5}
        with mock.patch.multiple(jax.random, **draws):
            loss = functools.partial(ddpm.loss, batch={"image": image}, key=self.state.key, cfg=self.cfg)
            (value, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(self.state.params)
        with mock.patch.object(jax.random, "normal", return_value=jnp.asarray(start)):
            samples = jax.jit(functools.partial(self._draw, "ddim", count=CHECKED))(
                jax.random.key(0), self.state
            )
        outputs = self._forward(self.state, image, t)
        pictures = {"image": image, "noise": noise, "start": start, "prediction": outputs, "samples": samples}
        written = {name: np.moveaxis(np.asarray(array), -1, 1) for name, array in pictures.items()}
        for kind, tree in (("weight", self.state.params), ("gradient", grads)):
            written |= {f"{kind}:{name}": value for name, value in self._diffusers_layout(tree).items()}
        np.savez(path, t=t, loss=value, **written)

    def flops(self):
        """Of one example's forward pass, as XLA counts."""
        x, t = self.images[0, :1], jnp.zeros(1, jnp.int32)
        return self._forward.lower(self.state, x, t).cost_analysis()["flops"]

    @functools.cached_property
    def _forward(self):
        return jax.jit(lambda state, x, t: ddpm.predictor(state, self.cfg)(x, t))

    def _diffusers_layout(self, tree):
        """{"module.layer.weight": array} of the parameters, or of their gradients."""
        sizes, blocks = range(len(self.sizes.hidden)), self.cfg.network.num_blocks
        convs = ["conv_in", *(f"down_blocks.{i}.downsamplers.0.conv" for i in sizes[:-1]), "conv_out"]
        residuals = [
            *(f"down_blocks.{i}.resnets.{j}" for i in sizes for j in range(blocks)),
            *(f"mid_block.resnets.{j}" for j in range(2)),
            *(f"up_blocks.{i}.resnets.{j}" for i in sizes for j in range(blocks + 1)),
        ]
        names = {
            ("Dense_0",): "time_embedding.linear_1",
            ("Dense_1",): "time_embedding.linear_2",
            ("GroupNorm_0",): "conv_norm_out",
        }
        names |= {(f"Conv_{i}",): name for i, name in enumerate(convs)}
        names |= {(f"UpsampleConv_{i}",): f"up_blocks.{i}.upsamplers.0.conv" for i in sizes[:-1]}
        for i, name in enumerate(residuals):
            names |= {(f"ResidualBlock_{i}", ours): f"{name}.{theirs}" for ours, theirs in BLOCK.items()}
        names |= {
            ("SelfAttention_0", ours): f"mid_block.attentions.0.{theirs}"
            for ours, theirs in ATTENTION.items()
        }
        arrays = {}
        for path, leaf in jax.tree.flatten_with_path(tree["UNet_0"])[0]:
            *layer, kind = (entry.key for entry in path)
            array = np.asarray(leaf)
            if kind == "kernel":
                array = np.moveaxis(array, (-1, -2), (0, 1))
            arrays[f"{names[tuple(layer)]}.{'bias' if kind == 'bias' else 'weight'}"] = array
        return arrays

    def num_params(self):
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    def versions(self):
        return directory.versions()


if __name__ == "__main__":
    serve(Side)
