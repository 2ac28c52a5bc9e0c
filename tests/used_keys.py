"""The random keys that a program uses, found by evaluating what it does with keys and nothing else."""

from collections import Counter

import jax
import numpy as np
from jax.extend import core

UNKNOWN = object()
"""The value of what does not follow from keys, steps and constants: data, parameters and random numbers."""


class Uses:
    """What keys were used for: how often each gave numbers, and which had others made of them."""

    def __init__(self):
        self.drawn = Counter()
        self.parents = set()

    def twice(self):
        """Keys that served more than once: that gave numbers twice, or numbers and further keys."""
        return [key for key, count in self.drawn.items() if count > 1 or key in self.parents]


def uses(function, *known, unknown=()):
    """The Uses in function(*known, *unknown), a tree of arrays each; `known` are evaluated."""
    closed, _ = jax.make_jaxpr(function, return_shape=True)(*known, *unknown)
    count = len(jax.tree.leaves(known))
    values = jax.tree.leaves((known, unknown))
    found = Uses()
    rest = [UNKNOWN] * (len(values) - count)
    _evaluate(closed.jaxpr, closed.consts, [*values[:count], *rest], found)
    return found


def _evaluate(jaxpr, consts, arguments, found):
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))
    read = lambda var: var.val if isinstance(var, core.Literal) else values[var]
    for equation in jaxpr.eqns:
        inputs = [read(var) for var in equation.invars]
        outputs = _apply(equation, inputs, found)
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _apply(equation, inputs, found):
    name, params = equation.primitive.name, equation.params
    unknown = [UNKNOWN] * len(equation.outvars)
    if name == "scan":
        return _scan(params, inputs, found)
    if name == "while":
        return _while(params, inputs, found)
    if name == "cond":
        assert inputs[0] is not UNKNOWN, "which branch is taken depends on data"
        branch = params["branches"][int(np.clip(inputs[0], 0, len(params["branches"]) - 1))]
        return _evaluate(branch.jaxpr, branch.consts, inputs[1:], found)
    if params.get("differentiated"):  # the forward pass computed again, with its keys
        return unknown
    for field in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if field in params:
            inner = params[field]
            closed = isinstance(inner, core.ClosedJaxpr)
            return _evaluate(inner.jaxpr if closed else inner, inner.consts if closed else [], inputs, found)
    if any(value is UNKNOWN for value in inputs):
        return unknown
    if name == "random_bits":
        found.drawn.update(_identities(inputs[0]))
        return unknown
    if name in ("random_split", "random_fold_in"):
        found.parents.update(_identities(inputs[0]))
    values = equation.primitive.bind(*inputs, **params)
    return list(values) if equation.primitive.multiple_results else [values]


def _identities(keys):
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()]


def _scan(params, inputs, found):
    num_consts, num_carry = _parts_of_scan(params)
    consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
    rows, body = inputs[num_consts + num_carry :], params["jaxpr"]
    order = range(params["length"])
    for index in reversed(order) if params["reverse"] else order:
        row = [UNKNOWN if values is UNKNOWN else values[index] for values in rows]
        carry = _evaluate(body.jaxpr, body.consts, [*consts, *carry, *row], found)[:num_carry]
    return [*carry, *[UNKNOWN] * (len(body.jaxpr.outvars) - num_carry)]


def _parts_of_scan(params):
    """How many inputs of a loop are the same for all rows, and how many are carried on."""
    if "num_consts" in params:  # before jax 0.12
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def _while(params, inputs, found):
    of_cond, of_body = params["cond_nconsts"], params["body_nconsts"]
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]
    carry = inputs[of_cond + of_body :]
    while True:
        (more,) = _evaluate(cond.jaxpr, cond.consts, [*inputs[:of_cond], *carry], found)
        if more is not UNKNOWN and not more:
            return carry
        carry = _evaluate(body.jaxpr, body.consts, [*inputs[of_cond : of_cond + of_body], *carry], found)
        if more is UNKNOWN:
            return carry
