"""The presets of `jaxgen.gan` as they are, served to `gan_step.py`."""

import dataclasses
import functools
from typing import ClassVar
from unittest import mock

import jax
import numpy as np
from jaxgen_models import Side
from train_step import serve

from jaxgen.gan import gan, presets


class Preset:
    """`jaxgen.gan.gan` of the preset that `network` names."""

    def __init__(self, sizes):
        preset = presets.PRESETS[sizes.network].config
        self.cfg = dataclasses.replace(
            preset,
            shape=sizes.shape,
            num_latents=sizes.num_latents,
            generator=preset.generator.clone(widths=sizes.hidden[::-1]),
            discriminator=preset.discriminator.clone(widths=sizes.hidden),
        )
        self.init = functools.partial(gan.init, cfg=self.cfg)
        self.train_step = functools.partial(gan.train_step, cfg=self.cfg)

    def check(self, state, bits, noise):
        """The losses and gradients that PyTorch has to reproduce, each of its own network.

        The points of the gradient penalty divide their segments evenly, from 0 of the first example to 1.
        """
        losses = {"discriminator": gan.discriminator_loss, "generator": gan.generator_loss}
        evenly = lambda key, shape: np.linspace(0, 1, shape[0], dtype=np.float32).reshape(shape)
        batch, values, grads = {"image": bits}, {}, {}
        with (
            mock.patch.object(gan, "draw_codes", return_value=noise),
            mock.patch.object(jax.random, "uniform", evenly),
        ):
            for player, loss in losses.items():
                loss = functools.partial(loss, state=state, batch=batch, key=state.key, cfg=self.cfg)
                (values[player], _), grads[player] = jax.jit(jax.value_and_grad(loss, has_aux=True))(
                    state.params[player]
                )
        return values, grads


class PresetSide(Side):
    """One preset."""

    systems: ClassVar = dict.fromkeys(("dcgan", "wgan_gp"), Preset)
    # Of millions of units a few are so near LeakyReLU's kink that rounding changes a gradient's fourth digit.
    num_checked = 16


if __name__ == "__main__":
    serve(PresetSide)
