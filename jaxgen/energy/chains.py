"""Where the model's side of a Boltzmann machine's gradient comes from: chains of Gibbs sampling.

The gradient of log p(v) is that of log f at the data minus its mean under the model. Contrastive divergence
(Hinton 2002) takes the latter from a few steps that start at the data; persistent chains (Tieleman 2008) go
on from where the last update left them; parallel tempering (Desjardins et al. 2010; Cho, Raiko & Ilin 2010)
has chains at higher temperatures beside them, which cross between modes and trade places with colder ones.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys
from jaxgen.energy.bipartite import Base, Machine, Params
from jaxgen.fields import PositiveInt, Range
from jaxgen.values import Value


class Chains(Value):
    """How states of the model are found at an update; one of one's own derives from it and is frozen."""

    def init(self, key: Array, machine: Machine, params: Params) -> Any:
        """What is kept from update to update, arrays or a tree of them."""
        raise NotImplementedError

    def advance(
        self, key: Array, machine: Machine, params: Params, chains: Any, v: Array
    ) -> tuple[Any, Array]:
        """What is kept after an update, and states of the model (N, V), by states v (B, V) of the data."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ContrastiveDivergence(Chains):
    """Steps from the data: CD-k. Their end is near the data, and so is what the model unlearns."""

    num_steps: PositiveInt = 1
    """Gibbs steps, each of both layers: k."""

    def init(self, key: Array, machine: Machine, params: Params) -> tuple[()]:
        """No chains are kept."""
        del key, machine, params
        return ()

    def advance(
        self, key: Array, machine: Machine, params: Params, chains: tuple[()], v: Array
    ) -> tuple[tuple[()], Array]:
        """The chains after an update, and states of the model, (B, V), by data v (B, V)."""
        return chains, machine.gibbs(keys.named(key, "chains"), params, v, self.num_steps)


@dataclasses.dataclass(frozen=True)
class Persistent(Chains):
    """Chains that go on from update to update: PCD. The learning rate must be low enough for them to
    follow.
    """

    num_chains: PositiveInt = 100
    """Chains in the state."""
    num_steps: PositiveInt = 1
    """Gibbs steps of every chain in an update, each of both layers."""

    def init(self, key: Array, machine: Machine, params: Params) -> Array:
        """States of independent units, (num_chains, V)."""
        return from_biases(key, machine, params, self.num_chains)

    def advance(
        self, key: Array, machine: Machine, params: Params, chains: Array, v: Array
    ) -> tuple[Array, Array]:
        """The chains after an update, and states of the model: the same. Data v play no part.

        Raises ValueError for chains of another number or of other units than the model's.
        """
        del v
        _check_shape(chains, (self.num_chains, len(params.visible_bias)))
        chains = machine.gibbs(keys.named(key, "chains"), params, chains, self.num_steps)
        return chains, chains


@dataclasses.dataclass(frozen=True)
class Tempered(Chains):
    """Persistent chains at several temperatures, of which those of neighbouring ones trade places.

    At inverse temperature beta weights and biases are beta times what they are. A pair of states trades
    places with probability min(1, f_i(v_j) f_j(v_i) / (f_i(v_i) f_j(v_j))), which leaves all distributions
    as they are.
    """

    num_chains: PositiveInt = 100
    """Chains at every temperature."""
    num_temperatures: Annotated[int, Range(least=2)] = 5
    """Inverse temperatures, evenly spaced from 1 down to 1 over their number."""
    num_steps: PositiveInt = 1
    """Gibbs steps of every chain in an update, each of both layers and followed by an exchange."""

    def init(self, key: Array, machine: Machine, params: Params) -> Array:
        """States of independent units, (num_temperatures, num_chains, V)."""
        chains = from_biases(key, machine, params, self.num_temperatures * self.num_chains)
        return chains.reshape(self.num_temperatures, self.num_chains, -1)

    def advance(
        self, key: Array, machine: Machine, params: Params, chains: Array, v: Array
    ) -> tuple[Array, Array]:
        """The chains after an update, and states of the model: the coldest. Data v play no part.

        Raises ValueError for chains of another number or of other units than the model's.
        """
        del v
        shape = self.num_temperatures, self.num_chains, len(params.visible_bias)
        _check_shape(chains, shape)
        rows = jnp.arange(self.num_temperatures)
        beta = 1 - rows / self.num_temperatures
        base = Base(jnp.zeros_like(params.visible_bias), jnp.zeros_like(params.hidden_bias))
        at = jax.vmap(lambda beta: machine.between(params, base, beta))(beta)
        log_f = jax.vmap(machine.log_unnormalized)

        def exchanged(key, chains, first):
            """Those of temperatures first, first + 2, ... have tried to trade with the next hotter ones."""
            partner = jnp.where((rows - first) % 2 == 0, rows + 1, rows - 1)
            partner = jnp.where((partner >= 0) & (partner < len(rows)), partner, rows)
            other = chains[partner]
            gain = log_f(at, other) - log_f(at, chains)
            uniform = jax.random.uniform(key, gain.shape)[jnp.minimum(rows, partner)]
            return jnp.where((jnp.log(uniform) < gain + gain[partner])[..., None], other, chains)

        def step(index, chains):
            own_key = jax.random.fold_in(key, index)
            gibbs_key, even_key, odd_key = keys.named(own_key, "tempered", "even exchange", "odd exchange")
            gibbs_keys = jax.random.split(gibbs_key, self.num_temperatures)
            chains = jax.vmap(lambda key, params, v: machine.gibbs(key, params, v, 1))(gibbs_keys, at, chains)
            return exchanged(odd_key, exchanged(even_key, chains, 0), 1)

        chains = jax.lax.fori_loop(0, self.num_steps, step, chains)
        return chains, chains[0]


def from_biases(key: Array, machine: Machine, params: Params, n: int, base: Base | None = None) -> Array:
    """n states of the visible units without hidden ones, (n, V), of the biases `base`, by default their
    own.
    """
    base = Base(params.visible_bias, params.hidden_bias) if base is None else base
    alone = machine.between(params, base, 0.0)
    h = jnp.zeros((n, len(params.hidden_bias)), params.weight.dtype)
    return machine.sample_visible(key, alone, h)


def _check_shape(chains: Array, shape: tuple[int, ...]) -> None:
    if chains.shape != shape:
        raise ValueError(f"the state has chains {chains.shape}, the config asks for {shape}: start a new run")
