"""The variables of a network, and the one place where the networks of a Config are made and applied.

A network is a Linen module, ours or a user's own. Beside parameters it may have other collections, such as
the running statistics of a BatchNorm, and in training it may draw random numbers, as Dropout does. If its
`__call__` has a parameter `train`, it is told there whether it is being trained:

    class Encoder(nn.Module):
        num_outputs: int | None = None

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(64)(x.reshape(len(x), -1)))
            x = nn.Dropout(0.1, deterministic=not train)(nn.relu(x))
            return nn.Dense(self.num_outputs)(x)

Where a State has the parameters of a network, one with other collections has `Variables`, so that these are
averaged, saved and sharded like parameters. They have no gradient: after the update of the optimizer a
training step puts in what `train` has made of them, by `with_stats`.

A loss is that of training. Within `evaluation()` its networks are applied as in evaluation:

    with variables.evaluation():
        value, _ = vae.loss(state.params, batch, key, cfg)
"""

import contextlib
import contextvars
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import fields, keys

_EVALUATED = contextvars.ContextVar("evaluated", default=False)


class Variables(NamedTuple):
    """The variables of a network that has more than parameters."""

    params: Any
    stats: dict[str, Any]  # the other collections by name, such as "batch_stats"


def init(network: nn.Module, key: Array, *inputs: Any, **options: Any) -> Any:
    """The variables of a fresh network for inputs like these: its parameters, or `Variables`.

    Raises ValueError for a network that draws random numbers or changes its statistics in evaluation, and for
    statistics that are no floating-point numbers.
    """
    made = dict(network.init(key, *inputs, **told(network, False), **options))
    params = made.pop("params", {})
    for name, collection in made.items():
        if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(collection)):
            raise ValueError(
                f"{_name(network)} has a collection {name!r} of other than floating-point numbers"
            )
    variables = Variables(params, made) if made else params
    if _is_own(network):
        jax.eval_shape(lambda: apply(network, variables, *inputs, **options))
    return variables


def parameters(network: nn.Module, key: Array, *inputs: Any, may_drop: bool = False, **options: Any) -> Any:
    """The parameters of a fresh network that has nothing else, for models that cannot hold more.

    Raises ValueError for a network with other collections, and for one that draws random numbers in training
    unless it `may_drop`.
    """
    variables = init(network, key, *inputs, **options)
    more = ", ".join(variables.stats) if isinstance(variables, Variables) else ""
    if not more and not may_drop and _is_own(network):
        try:
            collections = {"params": variables}
            jax.eval_shape(lambda: network.apply(collections, *inputs, **told(network, True), **options))
        except flax.errors.InvalidRngError:
            more = "random numbers, as for Dropout"
    if more:
        left_out = "BatchNorm" if may_drop else "BatchNorm and Dropout"
        raise ValueError(
            f"{_name(network)} needs {more}, and a network of this model has parameters alone: leave out"
            f" {left_out}, or take LayerNorm"
        )
    return variables


def apply(network: nn.Module, variables: Any, *inputs: Any, **options: Any) -> Any:
    """What a network makes of inputs in evaluation, by its running statistics and without random numbers.

    Raises ValueError for a network that draws random numbers or changes its statistics then.
    """
    try:
        return call(network, _collections(variables), *inputs, train=False, **options)
    except flax.errors.InvalidRngError:
        wrong = "draws random numbers"
    except flax.errors.ModifyScopeVariableError:
        wrong = "changes its statistics"
    raise ValueError(
        f"{_name(network)} {wrong} in evaluation: let its __call__ take train=False, and give Dropout"
        " deterministic=not train and BatchNorm use_running_average=not train"
    )


def train(network: nn.Module, variables: Any, key: Array, *inputs: Any, **options: Any) -> tuple[Any, Any]:
    """What a network makes of inputs in training, and its variables with the statistics that it leaves."""
    if _EVALUATED.get():
        return apply(network, variables, *inputs, **options), variables
    collections = _collections(variables)
    if not isinstance(variables, Variables):
        return call(network, collections, *inputs, train=True, key=key, **options), variables
    output, moved = call(
        network, collections, *inputs, train=True, key=key, mutable=list(variables.stats), **options
    )
    return output, variables._replace(stats={**variables.stats, **moved})


@contextlib.contextmanager
def evaluation() -> Iterator[None]:
    """What is traced in here applies every network by its running statistics, without random numbers.

    So the loss of a family is that of held-out examples. What is called must be traced in here: a function
    that was compiled outside stays what it was.
    """
    token = _EVALUATED.set(True)
    try:
        yield
    finally:
        _EVALUATED.reset(token)


def with_stats(params: Any, after: Any) -> Any:
    """A tree of variables that an optimizer has updated, with the statistics that `after` has of them."""

    def kept(new, left):
        return new._replace(stats=left.stats) if isinstance(new, Variables) else new

    return jax.tree.map(kept, params, after, is_leaf=lambda node: isinstance(node, Variables))


def call(
    network: nn.Module,
    collections: Mapping[str, Any],
    *inputs: Any,
    train: bool,
    key: Array | None = None,
    mutable: Any = False,
    **options: Any,
) -> Any:
    """`network.apply`, told whether it is being trained, with random numbers of every name by the key."""
    rngs = None if key is None else {"dropout": key, "params": keys.named(key, "other than dropout")}
    return network.apply(collections, *inputs, **told(network, train), rngs=rngs, mutable=mutable, **options)


def parted(variables: Any) -> Variables:
    """The variables of a network as `Variables`, without statistics if it has parameters alone."""
    return variables if isinstance(variables, Variables) else Variables(variables, {})


def told(network: nn.Module, train: bool) -> dict[str, Any]:
    """The argument that tells a network whether it is being trained, if its `__call__` takes that."""
    return {"train": train} if _takes_train(type(network)) else {}  # type: ignore[arg-type]


@functools.cache
def _takes_train(cls: type) -> bool:
    return "train" in inspect.signature(cls.__call__).parameters  # type: ignore[operator]


def _collections(variables: Any) -> dict[str, Any]:
    params, stats = parted(variables)
    return {"params": params, **jax.lax.stop_gradient(stats)}


def _is_own(network: nn.Module) -> bool:
    """Whether a network, or one inside of it, is not of this package, and may do what no model can have."""
    inside = (getattr(network, field.name) for field in fields.options(network))
    return not type(network).__module__.startswith("jaxgen.") or any(
        _is_own(each) for each in inside if isinstance(each, nn.Module)
    )


def _name(network: nn.Module) -> str:
    return f"the network {type(network).__qualname__}"
