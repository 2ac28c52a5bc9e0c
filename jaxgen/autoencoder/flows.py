"""Flows between normal variables and the latents of a VAE: inverse autoregressive flow, IAF (Kingma et al.
2016), and priors that are learned (Huang et al. 2017; Chen et al. 2017).

The encoder gives a mean, a scale and a context h, and the posterior of z is what a flow f makes of normal
variables,

    z_0 ~ N(m(x), diag s(x)^2),     z = f(z_0; h(x)),     log q(z | x) = log N(z_0) - log |det df/dz_0|,

so that it need be neither normal nor independent. An autoregressive f takes one call of each network for a
draw and its density, as training needs, and one for each variable for the density of any other z. The prior
is the other way round a flow g to normal variables, log p(z) = log N(g(z); 0, I) + log |det dg/dz|: if it is
autoregressive, then its draws take a call for each variable, and if it is one of couplings, neither does. As
neither KL has a closed form, bounds take log q(z | x) - log p(z) at the draws.

All steps are the identity at first. Departs from Kingma et al.: the steps are z exp(s) + t with s bounded, in
place of gates; and the order of the variables is reversed for every other step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import distributions, keys
from jaxgen.autoencoder.posteriors import Gaussian, Posterior
from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.flow import bijectors
from jaxgen.flow.spline import Autoregressive, Coupling, Layer
from jaxgen.flow.transforms import Affine, RationalQuadratic, Transform
from jaxgen.nn.masked import MADE
from jaxgen.values import Value


@dataclasses.dataclass(frozen=True)
class Steps(Value):
    """A flow of latents."""

    num_layers: PositiveInt = 4
    """Steps."""
    layer: Autoregressive | Coupling | Layer = Autoregressive(MADE((256,)))
    """What the networks read: the variables before each, or half of them."""
    transform: Affine | RationalQuadratic | Transform = Affine()
    """How a variable is moved."""

    def bijector(self, num_latents: int, num_context: int = 0) -> bijectors.Bijector:
        """The bijector of vectors of so many numbers, given a context of so many if there are any."""

        def step(index):
            turned = _turned(index)
            moved = self.layer.bijector(self.transform, num_latents, num_context)
            return bijectors.chain(turned, moved, turned)

        return bijectors.scanned(step, self.num_layers)


@dataclasses.dataclass(frozen=True)
class GivenSteps(Steps):
    """A flow of latents that is given a context."""

    num_context: NonNegativeInt = 64
    """Numbers that the encoder gives beside mean and scale; 0 for none."""


@dataclasses.dataclass(frozen=True)
class Flow(Posterior):
    """Normal z that go through a flow, of which the prior is N(0, I) or has a flow of its own.

    q is (mean, log_variance, context), and the encoder gives these side by side, or as a triple.
    """

    posterior_flow: GivenSteps | None = GivenSteps()
    """From normal variables to z given x; by default IAF, None for none."""
    prior_flow: Steps | None = None
    """From z to the normal variables of the prior; None for none."""

    closed_form = False

    @property
    def told_by_q(self) -> bool:  # type: ignore[override]
        """A flow has parameters of its own."""
        return self.posterior_flow is None

    def num_outputs(self, num_latents: int) -> int:
        """Two numbers for each latent variable, and the context."""
        return 2 * num_latents + self._num_context

    def read(self, output: Any, num_latents: int) -> tuple[Array, Array, Array]:
        """Mean and log-variance before the flow, (B, num_latents), and the context."""
        if not isinstance(output, tuple | list):
            output = jnp.split(output, (num_latents, 2 * num_latents), -1)
        mean, log_variance, context = output
        return *Gaussian().read((mean, log_variance), num_latents), jnp.float32(context)

    def init(self, key: Array, num_latents: int) -> Any:
        """Parameters of both flows."""
        posterior_key, prior_key = keys.named(key, "posterior flow", "prior flow")
        found = {}
        if self.posterior_flow is not None:
            found["posterior"] = self.posterior_flow.bijector(num_latents, self._num_context).init(
                posterior_key
            )
        if self.prior_flow is not None:
            found["prior"] = self.prior_flow.bijector(num_latents).init(prior_key)
        return found

    def bound(self, params: Any) -> Posterior:
        """The distributions with these parameters."""
        return Bound(self, params)

    @property
    def _num_context(self) -> int:
        return 0 if self.posterior_flow is None else self.posterior_flow.num_context


class Bound(Posterior):
    """The distributions of a `Flow` with its parameters."""

    closed_form = False

    def __init__(self, flow: Flow, params: Any) -> None:
        self.flow, self.params = flow, params

    def prior(self, n: int, num_latents: int) -> Any:
        """What the encoder gives where q is the prior, if that has no flow."""
        return self.flow.prior(n, num_latents)

    def sample(self, key: Array, q: Any) -> Array:
        """A draw of z, differentiable in q and the parameters."""
        return self.proposed(key, q)[0]

    def proposed(self, key: Array, q: Any, step: Array | int | None = None) -> tuple[Array, Array]:
        """A draw of z and log q(z | x), by one call of each network."""
        mean, log_variance, context = q
        z = Gaussian().sample(key, (mean, log_variance))
        log_q = Gaussian().log_prob((mean, log_variance), z)
        z, log_det = self._moved(z, context)
        return z, log_q - log_det

    def log_prob(self, q: Any, z: Array) -> Array:
        """log q(z | x) of any z, (B,), through the inverse of the flow."""
        mean, log_variance, context = q
        z, log_det = self._moved(z, context, "inverse")
        return Gaussian().log_prob((mean, log_variance), z) + log_det

    def mean(self, q: Any) -> Array:
        """What the mean before the flow becomes."""
        return self._moved(q[0], q[2])[0]

    def prior_sample(self, key: Array, n: int, num_latents: int) -> Array:
        """n draws of p(z), (n, num_latents)."""
        z = jax.random.normal(key, (n, num_latents))
        steps = self.flow.prior_flow
        return z if steps is None else steps.bijector(num_latents).inverse(self.params["prior"], z)[0]

    def prior_log_prob(self, z: Array) -> Array:
        """log p(z), (B,)."""
        steps, log_det = self.flow.prior_flow, bijectors.no_change(z)
        if steps is not None:
            z, log_det = steps.bijector(z.shape[1]).forward(self.params["prior"], z)
        return distributions.normal_log_prob(z) + log_det

    def _moved(self, z: Array, context: Array, direction: str = "forward") -> tuple[Array, Array]:
        """z through the flow of the posterior and its log_det, or the other way round."""
        steps = self.flow.posterior_flow
        if steps is None:
            return z, bijectors.no_change(z)
        flow = steps.bijector(z.shape[1], steps.num_context)
        given = context if steps.num_context else None
        return getattr(flow, direction)(self.params["posterior"], z, given)


def _turned(index: Array | int) -> bijectors.Bijector:
    """The order of the numbers reversed for every other index."""

    def turn(params, x, context=None):
        del params, context
        return jnp.where(index % 2 == 1, x[..., ::-1], x), bijectors.no_change(x)

    return bijectors.Bijector(lambda key, x=None, context=None: (), turn, turn)
