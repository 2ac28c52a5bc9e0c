"""Several seeds at once are the seeds one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, shard
from jaxgen.classical import gmm
from jaxgen.run.seeds import Seeds

CFG = gmm.Config(shape=(2,), num_components=3, covariance="diagonal")


def test_every_seed_is_trained_as_if_alone():
    several = Seeds(gmm, 3)
    key = jax.random.key(0)
    batch = {"x": jax.random.normal(key, (30, 2))}
    trained = lambda family: jax.jit(
        lambda key, batch: family.train_step(family.init(key, CFG, batch), batch, CFG)
    )
    state, metrics = trained(several)(key, batch)
    one, nll = trained(gmm), []
    for index, own in enumerate(jax.random.split(key, 3)):
        alone, found = one(own, {"x": batch["x"][10 * index : 10 * index + 10]})
        jax.tree.map(
            lambda many, one, index=index: np.testing.assert_allclose(many[index], one, rtol=1e-4, atol=1e-5),
            state.states.params,
            alone.params,
        )
        nll.append(found["nll"])
    np.testing.assert_allclose(metrics["nll"], np.mean(nll), rtol=1e-4)
    assert all(metric.shape == () for metric in metrics.values())


@pytest.mark.slow
def test_samples_are_of_all_seeds_in_turn():
    several, key = Seeds(gmm, 3), jax.random.key(0)
    state = several.init(key, CFG)
    each = several.sample_each(key, state, 4, CFG)
    np.testing.assert_array_equal(several.sample(key, state, 10, CFG), np.stack(each, 1).reshape(12, 2)[:10])


@pytest.mark.slow
def test_fit_trains_and_resumes_them(tmp_path):
    train, several = data.load("ring"), Seeds(gmm, 4)
    options = {"batch_size": 64, "key": jax.random.key(1), "mesh": shard.mesh(data=1), "sample_every": 0}
    straight = jaxgen.fit(several, CFG, train, steps=6, **options)
    jaxgen.fit(several, CFG, train, steps=3, run_dir=tmp_path, **options)
    resumed = jaxgen.fit(several, CFG, train, steps=6, run_dir=tmp_path, **options)
    jax.tree.map(np.testing.assert_array_equal, straight.states.params, resumed.states.params)
    means = straight.states.params.means
    assert means.shape[0] == 4
    assert not np.allclose(means[0], means[1])
    family, cfg, loaded = jaxgen.load(tmp_path)
    assert (family, cfg) == (several, CFG)
    jax.tree.map(np.testing.assert_array_equal, loaded.states.params, resumed.states.params)
    assert several.sample(jax.random.key(2), straight, 10, CFG).shape == (10, 2)
    assert several.sample_each(jax.random.key(2), straight, 5, CFG).shape == (4, 5, 2)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="3 seeds cannot share a batch of 10"):
        Seeds(gmm, 3).init(jax.random.key(0), CFG, {"x": jnp.zeros((10, 2))})
    with pytest.raises(ValueError, match="at least one seed"):
        Seeds(gmm, 0)
