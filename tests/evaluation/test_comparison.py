import jax
import jax.numpy as jnp

from jaxgen import data, evaluation
from jaxgen.evaluation import samples
from jaxgen.evaluation.comparison import compare


def test_a_model_has_one_distance_and_one_floor(monkeypatch):
    """Whether it is measured alone or beside others; the floor is the same for every key."""
    monkeypatch.setattr(samples, "FLOOR_DRAWS", 3)
    train, test = data.load("ring", "train[:1000]"), data.load("ring", "test")
    population = jnp.asarray(train[:]["x"])
    draw = lambda key, n: population[jax.random.randint(key, (n,), 0, len(population))]
    alone = evaluation.measure(draw, train, test, 200, key=jax.random.key(3))
    together = compare({"same": draw}, train, test, 200, key=jax.random.key(3))
    other = compare({"same": draw}, train, test, 200, key=jax.random.key(4))
    ((label, found),) = together.items()
    assert label.endswith(", same")
    assert found == alone[label.removesuffix(", same")]
    assert other[label]["value"] != found["value"]
    assert [other[label][part] for part in ("floor", "floor_spread")] == [
        found["floor"],
        found["floor_spread"],
    ]
