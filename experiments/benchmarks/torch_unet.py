"""The same in PyTorch with `diffusers`, served to `unet.py`; needs diffusers, not jaxgen."""

import itertools

import diffusers
import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from train_step import NUM_BATCHES, serve
from unet import SAMPLERS, SAMPLES, stopwatch

LAYOUTS = {"plain": torch.contiguous_format, "tuned": torch.channels_last}


class Side:
    """The network and scheduler of `diffusers`, in bare loops."""

    def __init__(self, sizes, variant, threads):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        height, width, channels = sizes.shape
        self.shape = channels, height, width
        self.model = diffusers.UNet2DModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=sizes.hidden,
            down_block_types=("DownBlock2D",) * len(sizes.hidden),
            up_block_types=("UpBlock2D",) * len(sizes.hidden),
            layers_per_block=1,
            norm_num_groups=8,
            norm_eps=1e-6,
            attention_head_dim=None,
            downsample_padding=0,
            freq_shift=1,
            flip_sin_to_cos=False,
        )
        self.layout = LAYOUTS[variant]
        self.model.to(memory_format=self.layout)
        tuned = variant == "tuned"
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True if tuned else None)
        self.average = EMAModel(self.model.parameters(), decay=0.999, use_ema_warmup=False, foreach=tuned)
        self.scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
        images = 2 * torch.rand(NUM_BATCHES * sizes.batch_size, channels, height, width) - 1
        self.batches = itertools.cycle(images.contiguous(memory_format=self.layout).chunk(NUM_BATCHES))

    def seconds(self, name):
        """Wall-clock and CPU seconds of a training step ("step"), or of `SAMPLES` draws."""
        return stopwatch(self.train_step if name == "step" else self.draw)

    def train_step(self):
        image = next(self.batches)
        t = torch.randint(len(self.scheduler), (len(image),))
        loss = self.loss(image, torch.randn_like(image), t)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.step(self.model.parameters())

    def loss(self, image, noise, t):
        noisy = self.scheduler.add_noise(image, noise, t)
        return functional.mse_loss(self.model(noisy, t).sample, noise)

    def draw(self):
        return self.sample(torch.randn(SAMPLES, *self.shape))

    @torch.no_grad()
    def sample(self, x):
        x = x.contiguous(memory_format=self.layout)
        self.scheduler.set_timesteps(SAMPLERS["ddim"])
        for t in self.scheduler.timesteps:
            prediction = self.model(x, t).sample
            x = self.scheduler.step(prediction, t, x, use_clipped_model_output=True).prev_sample
        return x

    def check(self, given, answered):
        """Take over every weight and the inputs; write what this side makes of them."""
        arrays = {name: torch.from_numpy(array) for name, array in np.load(given).items()}
        parameters = dict(self.model.named_parameters())
        assert {f"weight:{name}" for name in parameters} == {n for n in arrays if n.startswith("weight:")}
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(arrays[f"weight:{name}"].view_as(parameter))
            image, t = arrays["image"].contiguous(memory_format=self.layout), arrays["t"].long()
            prediction = self.model(image, t).sample
        self.model.zero_grad()
        loss = self.loss(image, arrays["noise"], t)
        loss.backward()
        written = {"prediction": prediction, "loss": loss.detach(), "samples": self.sample(arrays["start"])}
        written |= {f"gradient:{name}": parameter.grad for name, parameter in parameters.items()}
        np.savez(answered, **{name: value.numpy() for name, value in written.items()})

    def flops(self):
        """Of the convolutions and products of one example's forward pass, a multiply-add counted as two."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model(torch.zeros(1, *self.shape), 0)
        return counter.get_total_flops()

    def num_params(self):
        return sum(parameter.numel() for parameter in self.model.parameters())

    def versions(self):
        return {"diffusers": diffusers.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    serve(Side)
