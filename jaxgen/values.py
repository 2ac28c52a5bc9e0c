"""Values: the parts that a Config holds, such as optimizers, and the codec that keeps them in a config.json.

A part is a Linen module or a `Value`, a frozen dataclass with this mark; the Config of a family may be a
part of another family's. They compare and hash by their fields, so equal Configs do not retrace. A user's own
part is a class like those here: if it can be imported, a run that holds it is loaded without being told about
it.

    class Warm(values.Value):  # with @dataclasses.dataclass(frozen=True)
        learning_rate: float = 0.1
        def __call__(self, updates_per_step=1):
            return optax.sgd(self.learning_rate)

    cfg = vae.Config(optimizer=Warm())
"""

import dataclasses
import functools
import importlib
import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import fields, types
from jaxgen.fields import Decay, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class Value:
    """Marks a frozen dataclass that a Config may hold and that a config.json may name.

    Configs are Values too. Making one raises ValueError for a field that is not of its type, see `fields`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls).get("__post_init__")
        if own is not None:  # it can rely on the types of the fields

            @functools.wraps(own)
            def checked(self: Any, *arguments: Any) -> None:
                fields.check(self)
                own(self, *arguments)

            cls.__post_init__ = checked  # type: ignore[method-assign]

    def __post_init__(self, *_: Any) -> None:
        fields.check(self)


Part: TypeAlias = nn.Module | Value


# Step sizes over time


@dataclasses.dataclass(frozen=True)
class Constant(Value):
    """The step size stays as it is, after a linear rise from zero if there is a warm-up."""

    warmup_steps: NonNegativeInt = 0
    """Training steps in which the step size rises linearly from zero."""

    def __call__(self, rate: float, updates_per_step: int = 1) -> Any:
        """The step size as Optax takes it, a number or a function of the update."""
        steps = self.warmup_steps * updates_per_step
        return optax.linear_schedule(0.0, rate, steps) if steps else rate


@dataclasses.dataclass(frozen=True)
class Linear(Value):
    """The step size falls linearly to zero."""

    decay_steps: PositiveInt = 10_000
    """Training steps after which it is zero."""

    def __call__(self, rate: float, updates_per_step: int = 1) -> Any:
        """The step size as a function of the update."""
        return optax.linear_schedule(rate, 0.0, self.decay_steps * updates_per_step)


@dataclasses.dataclass(frozen=True)
class Cosine(Value):
    """The step size falls to zero along half a cosine, after a linear rise if there is a warm-up."""

    decay_steps: PositiveInt = 10_000
    """Training steps after which it is zero, the warm-up included."""
    warmup_steps: NonNegativeInt = 0
    """Training steps in which the step size rises linearly from zero."""

    def __call__(self, rate: float, updates_per_step: int = 1) -> Any:
        """The step size as a function of the update."""
        warmup, decay = (steps * updates_per_step for steps in (self.warmup_steps, self.decay_steps))
        if not warmup:
            return optax.cosine_decay_schedule(rate, decay)
        return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, decay)


Schedule: TypeAlias = Constant | Linear | Cosine


# Optimizers


@dataclasses.dataclass(frozen=True)
class Rule(Value):
    """What all optimizers here have: a step size, its course, and a bound on the gradient.

    Called, an optimizer is an `optax.GradientTransformation`. `updates_per_step` says how many updates a
    training step makes, since schedules count training steps.
    """

    learning_rate: NonNegativeFloat = 1e-3
    """Step size."""
    schedule: Schedule | Value = Constant()
    """How the step size changes during training."""
    gradient_clip: PositiveFloat | None = None
    """Largest norm of the whole gradient; a longer one is shortened to it."""

    def __call__(self, updates_per_step: int = 1) -> optax.GradientTransformation:
        """The optimizer as Optax has it."""
        rule = self.rule(self.schedule(self.learning_rate, updates_per_step))  # type: ignore[operator]
        if self.gradient_clip is None:
            return rule
        return optax.chain(optax.clip_by_global_norm(self.gradient_clip), rule)

    def rule(self, rate: Any) -> optax.GradientTransformation:
        """The update by a step size, a number or a function of the update."""
        raise TypeError(f"{type(self).__name__} has no rule of its own: use Adam, RMSProp or SGD")


@dataclasses.dataclass(frozen=True)
class Adam(Rule):
    """Adam (Kingma & Ba 2015), with decoupled weight decay if there is any (Loshchilov & Hutter 2019)."""

    beta1: Decay = 0.9
    """Decay of the mean gradient."""
    beta2: Decay = 0.999
    """Decay of the mean squared gradient."""
    epsilon: NonNegativeFloat = 1e-8
    """What is added to the root of the mean squared gradient."""
    weight_decay: NonNegativeFloat = 0.0
    """Share of the parameters that is subtracted from them at a step, times the step size."""

    def rule(self, rate: Any) -> optax.GradientTransformation:
        """Adam, or AdamW."""
        if self.weight_decay:
            return optax.adamw(rate, self.beta1, self.beta2, self.epsilon, weight_decay=self.weight_decay)
        return optax.adam(rate, self.beta1, self.beta2, self.epsilon)


@dataclasses.dataclass(frozen=True)
class RMSProp(Rule):
    """RMSProp (Tieleman & Hinton 2012)."""

    decay: Decay = 0.9
    """Decay of the mean squared gradient."""

    def rule(self, rate: Any) -> optax.GradientTransformation:
        """RMSProp."""
        return optax.rmsprop(rate, self.decay)


@dataclasses.dataclass(frozen=True)
class SGD(Rule):
    """Stochastic gradient descent, with momentum if there is any."""

    momentum: Decay = 0.0
    """Decay of the sum of gradients that is followed; 0 follows the gradient itself."""

    def rule(self, rate: Any) -> optax.GradientTransformation:
        """Gradient descent."""
        return optax.sgd(rate, self.momentum or None)


Optimizer: TypeAlias = Adam | RMSProp | SGD | Value | optax.GradientTransformation
"""What a Config takes as an optimizer. An Optax one is no JSON: a run of it is loaded with its `cfg`."""


def gradient_transformation(optimizer: Optimizer, updates_per_step: int = 1) -> optax.GradientTransformation:
    """The Optax optimizer that a Config's optimizer stands for."""
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    return optimizer(updates_per_step)  # type: ignore[operator, misc]


@dataclasses.dataclass(frozen=True)
class Average(Value):
    """Exponential moving average of parameters; its decay grows to its value in the first steps."""

    decay: Decay = 0.999
    """Share of the average that a step keeps: at step t at most (1 + t) / (10 + t)."""

    def __call__(self, average: Any, params: Any, step: Array) -> Any:
        """The average after training step number `step`, whose parameters are `params`."""
        kept = jnp.minimum(self.decay, (1.0 + step) / (10.0 + step))
        return optax.incremental_update(params, average, 1 - kept)


def filled(part: Any, **facts: Any) -> Any:
    """A part whose fields of these names that are None have the given values; other facts are left out.

    What only the data know, such as the shape of an output, is filled in where the part is used.
    """
    missing = {name: fact for name, fact in facts.items() if getattr(part, name, ...) is None}
    if not missing:
        return part
    return part.clone(**missing) if isinstance(part, nn.Module) else dataclasses.replace(part, **missing)


# The codec


options = fields.options


def to_json(value: Any) -> Any:
    """A value as JSON has it; a part becomes {"is": "module:Class", field: ...}.

    Raises TypeError for what is neither JSON nor a part, such as a function.
    """
    if _is_part(type(value)):
        module, name = type(value).__module__, type(value).__qualname__
        if module == "__main__" or "<locals>" in name:
            raise TypeError(f"{name} cannot be imported by another program: put it into a module")
        written = {"is": f"{module}:{name}"}
        for field in options(value):
            current = getattr(value, field.name)
            try:
                written[field.name] = to_json(current)
            except TypeError:
                if current is not field.default:  # a default need not be written
                    raise
        return written
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | jax.Array) and value.ndim == 0):
        return value.item()
    if isinstance(value, tuple | list):
        return [to_json(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} is neither JSON nor a part")


def from_json(value: Any) -> Any:
    """What `to_json` wrote. It builds Linen modules, Values and Configs of families, and calls nothing else.

    Raises:
        ValueError: a class that is neither, or cannot be found.
        TypeError: a class that has other fields.
    """
    if isinstance(value, dict):
        part = _part(str(value.get("is")))
        return built(part, {name: entry for name, entry in value.items() if name != "is"})
    return tuple(from_json(entry) for entry in value) if isinstance(value, list) else value


def built(part: type, given: Mapping[str, Any]) -> Any:
    """A part or Config of fields as `to_json` wrote them. Raises as `from_json` does."""
    names = [field.name for field in dataclasses.fields(part)]
    for name in given:
        if name not in names:
            raise TypeError(f"{part.__name__} has no {name!r}{fields.near(name, names)}")
    return part(**{name: from_json(entry) for name, entry in given.items()})


def imported(module: str) -> Any:
    """A module that a config.json names. Raises ValueError if there is none, or it is Python's own."""
    if module.partition(".")[0] in sys.stdlib_module_names | {"__main__"}:
        raise ValueError(f"{module} is a module of Python: it holds no part of a run")
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{module or 'a nameless module'} cannot be imported: {error}") from None


def _part(name: str) -> type:
    module, _, path = name.partition(":")
    found = imported(module)
    for attribute in path.split("."):
        found = getattr(found, attribute, None)
    if not _is_part(found):
        raise ValueError(f"{name} is neither a Linen module nor a Value nor the Config of a family")
    return found


def _is_part(found: Any) -> bool:
    """Whether this is a class of parts: Linen modules, Values, and the Config of a family, which may nest."""
    if not isinstance(found, type):
        return False
    if issubclass(found, nn.Module | Value):
        return True
    module = sys.modules.get(found.__module__)
    of_family = isinstance(module, types.Family) and module.Config is found  # type: ignore[unreachable]
    return of_family and dataclasses.is_dataclass(found)
