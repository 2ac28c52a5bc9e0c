"""The VQ-VAE's parts against k-means, brute force and the chain rule; then a short run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, shard, values
from jaxgen.autoencoder import vq_vae
from jaxgen.autoencoder.networks import DenseDecoder
from jaxgen.autoencoder.vector_networks import DenseEncoder, ResidualDecoder, ResidualEncoder

SMALL = vq_vae.Config(
    num_codes=16, code_size=4, encoder=DenseEncoder(widths=(32,)), decoder=DenseDecoder((32,))
)
TINY = vq_vae.Config(
    shape=(6,), num_codes=5, code_size=3, encoder=DenseEncoder(2, (8,)), decoder=DenseDecoder((8,))
)


def residual(*channels, **options):
    """Fields of a Config: convolutional networks, the decoder with the channels reversed."""
    return {
        "encoder": ResidualEncoder(channels, **options),
        "decoder": ResidualDecoder(channels[::-1], **options),
    }


RANDOM = (dataclasses.replace(SMALL, **residual(4, num_blocks=1, block_channels=4)),)


@pytest.fixture(scope="module")
def small():
    """State and a batch of four examples."""
    batch = {"x": jax.random.normal(jax.random.key(1), (4, 6))}
    return vq_vae.init(jax.random.key(0), TINY, batch), batch


def test_codes_are_those_of_the_nearest_vectors():
    z, codebook = (np.random.default_rng(seed).normal(size=(n, 7)) for seed, n in ((0, 200), (1, 30)))
    distance = ((z[:, None] - codebook) ** 2).sum(-1)
    found = vq_vae.nearest(jnp.float32(z).reshape(20, 10, 7), jnp.float32(codebook))
    np.testing.assert_array_equal(found, distance.argmin(1).reshape(20, 10))


def test_codes_far_from_zero_are_those_of_float64():
    rng = np.random.default_rng(0)
    z, codebook = (np.float32(10_000 + rng.uniform(-1, 1, (n, 7))) for n in (200, 30))
    distance = ((z[:, None].astype(np.float64) - codebook.astype(np.float64)) ** 2).sum(-1)
    np.testing.assert_array_equal(vq_vae.nearest(z, codebook), distance.argmin(1))


def test_the_gradient_passes_straight_through():
    z, quantised = jax.random.normal(jax.random.key(0), (2, 5, 3))
    function = lambda q: jnp.sum(jnp.sin(q) * q**2)
    np.testing.assert_allclose(vq_vae.straight_through(z, quantised), quantised, atol=1e-6)
    through = jax.grad(lambda z: function(vq_vae.straight_through(z, quantised)))(z)
    np.testing.assert_allclose(through, jax.grad(function)(quantised), atol=1e-5)
    assert not np.any(jax.grad(lambda q: function(vq_vae.straight_through(z, q)))(quantised))


@pytest.mark.slow
def test_the_gradient_of_the_loss_is_that_of_its_two_terms(small):
    """dL/dz is the decoder's gradient at q plus 2 beta (z - q) / size; the codebook has none."""
    state, batch = small
    grads = jax.grad(lambda p: vq_vae.loss(p, batch, jax.random.key(0), TINY)[0])(state.params)
    assert not np.any(grads["codebook"])
    encoder, decoder = vq_vae._encoder(TINY), vq_vae._decoder(TINY)
    z, pull = jax.vjp(lambda p: encoder.apply({"params": p}, batch["x"]), state.params["encoder"])
    quantised = state.params["codebook"][vq_vae.encode(state, batch["x"], TINY)]
    error = lambda p, q: ((decoder.apply({"params": p}, q) - batch["x"]) ** 2).mean()
    decoder_grads, at_quantised = jax.grad(error, (0, 1))(state.params["decoder"], quantised)
    expected = pull(at_quantised + 2 * TINY.commitment * (z - quantised) / z.size)[0]
    for found, exact in ((grads["encoder"], expected), (grads["decoder"], decoder_grads)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, exact)


def test_without_memory_a_step_is_one_of_k_means():
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(0)
    centers = rng.normal(size=(6, 3)) * 3
    z = jnp.float32(centers[rng.integers(6, size=400)] + rng.normal(size=(400, 3)))
    start = z[:6]
    cfg = vq_vae.Config(num_codes=6, code_size=3, decay=0.0, epsilon=1e-9)

    @jax.jit
    def step(vectors):
        used = jax.nn.one_hot(vq_vae.nearest(z, vectors), 6)
        return vq_vae.codebook(*vq_vae.update_statistics(jnp.ones(6), vectors, z, used, cfg), cfg)

    vectors = start
    for _ in range(50):
        vectors = step(vectors)
    kmeans = KMeans(6, init=np.asarray(start), n_init=1, tol=0, max_iter=50).fit(z)
    np.testing.assert_allclose(vectors, kmeans.cluster_centers_, atol=1e-4)


def test_with_memory_it_settles_at_the_means_of_its_cells():
    z = jnp.concatenate([jax.random.normal(jax.random.key(i), (50, 3)) + 6 * jnp.eye(3)[i] for i in range(3)])
    cfg = vq_vae.Config(num_codes=3, code_size=3, decay=0.9, epsilon=1e-9)
    vectors = 5 * jnp.eye(3)
    counts, sums = jnp.ones(3), vectors
    used = jax.nn.one_hot(vq_vae.nearest(z, vectors), 3)
    update = jax.jit(lambda counts, sums: vq_vae.update_statistics(counts, sums, z, used, cfg))
    for step in range(200):
        counts, sums = update(counts, sums)
        if step == 0:
            np.testing.assert_allclose(sums, 0.9 * vectors + 0.1 * used.T @ z, rtol=1e-5)
    np.testing.assert_allclose(counts, used.sum(0), rtol=1e-5)
    np.testing.assert_allclose(vq_vae.codebook(counts, sums, cfg), used.T @ z / counts[:, None], rtol=1e-4)


def test_smoothing_keeps_the_total_count():
    cfg = vq_vae.Config(num_codes=4, code_size=2, epsilon=0.5)
    counts = jnp.array([0.0, 1.0, 5.0, 10.0])
    smoothed = 1 / vq_vae.codebook(counts, jnp.ones((4, 2)), cfg)[:, 0]
    assert smoothed.sum() == pytest.approx(16)
    np.testing.assert_allclose(smoothed, (counts + 0.5) / 18 * 16, rtol=1e-6)


@pytest.mark.slow
def test_revival_moves_dead_vectors_onto_data_and_no_others():
    cfg = vq_vae.Config(num_codes=4, code_size=2, revive_below=0.1, epsilon=1e-9)
    counts, z = jnp.array([10.0, 0.2, 8.0, 0.0]), jax.random.normal(jax.random.key(0), (30, 2)) + 7
    sums = counts[:, None] * jnp.arange(8.0).reshape(4, 2)
    new_counts, new_sums, revived = vq_vae.revive(jax.random.key(1), counts, sums, z, cfg)
    np.testing.assert_array_equal(revived, [False, True, False, True])
    np.testing.assert_array_equal(new_counts, [10, counts.mean(), 8, counts.mean()])
    vectors = vq_vae.codebook(new_counts, new_sums, cfg)
    np.testing.assert_allclose(vectors[jnp.array([0, 2])], [[0, 1], [4, 5]], rtol=1e-5)
    distance = jnp.abs(vectors[jnp.array([1, 3]), None] - z).max(-1)
    assert distance.min(1).max() < 1e-4
    off = dataclasses.replace(cfg, revive_below=0.0)
    assert not vq_vae.revive(jax.random.key(1), counts, sums, z, off)[2].any()


def test_what_no_encoding_is_nearest_to_stays_in_place(small):
    """However long nothing is, without revival; the smoothing of its count draws it nowhere."""
    _, batch = small
    cfg = dataclasses.replace(TINY, revive_below=0.0, decay=0.5, epsilon=0.1)
    state = vq_vae.init(jax.random.key(0), cfg, batch)
    far = state.params["codebook"].at[2].add(50.0)
    state = state._replace(params={**state.params, "codebook": far}, sums=far)
    step = jax.jit(functools.partial(vq_vae.train_step, cfg=cfg))
    for _ in range(30):
        state, metrics = step(state, batch)
    np.testing.assert_array_equal(state.params["codebook"][2], far[2])
    assert (state.params["codebook"] != far).any()
    assert state.counts[2] < 1e-8
    assert metrics["revived"] == 0


@pytest.mark.slow
def test_a_codebook_far_from_the_data_comes_back_by_revival():
    batch = {"x": jax.random.normal(jax.random.key(1), (64, 6))}
    used = {}
    for threshold in (0.0, 0.2):
        cfg = dataclasses.replace(TINY, revive_below=threshold, num_codes=16)
        state = vq_vae.init(jax.random.key(0), cfg, batch)
        vectors = state.params["codebook"].at[1:].add(100.0)
        state = state._replace(params={**state.params, "codebook": vectors}, sums=vectors)
        run = jax.jit(
            lambda s, cfg=cfg: jax.lax.scan(lambda s, _: vq_vae.train_step(s, batch, cfg), s, length=400)
        )
        state, metrics = run(state)
        used[threshold] = len(np.unique(vq_vae.encode(state, batch["x"], cfg)))
    assert used[0.0] == 1
    assert used[0.2] > 8
    assert metrics["perplexity"][-1] > 4


def test_perplexity_counts_the_codes_in_use():
    frequencies = jnp.array([[0.25] * 4, [0.5, 0.5, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_allclose(vq_vae.perplexity(frequencies), [4, 2, 1], rtol=1e-6)


@pytest.mark.slow
def test_frequencies_are_those_of_the_first_batch_and_samples_follow_them(small):
    state, batch = small
    codes = np.asarray(vq_vae.encode(state, batch["x"], TINY))
    after, _ = vq_vae.train_step(state, batch, TINY)
    expected = np.stack([np.bincount(column, minlength=5) for column in codes.T]) / 4
    np.testing.assert_allclose(after.frequencies, expected, atol=1e-6)
    certain = after._replace(frequencies=jax.nn.one_hot(jnp.array([3, 0]), 5))
    samples = vq_vae.sample(jax.random.key(0), certain, 6, TINY)
    exact = vq_vae.decode(certain, jnp.tile(jnp.array([[3, 0]]), (6, 1)), TINY)
    np.testing.assert_allclose(samples, exact, atol=1e-6)


def test_without_a_batch_the_codebook_starts_near_zero_and_with_one_on_data(small):
    state, batch = small
    z = vq_vae._encoder(TINY).apply({"params": state.params["encoder"]}, batch["x"]).reshape(-1, 3)
    distance = jnp.abs(state.params["codebook"][:, None] - z).max(-1).min(1)
    assert distance.max() < 1e-6
    fresh = vq_vae.init(jax.random.key(0), TINY).params["codebook"]
    assert jnp.abs(fresh).max() <= 1 / 5


@pytest.mark.parametrize(("size", "times"), [((28, 20), 2), ((31, 33), 3)])
def test_convolutional_shapes_round_trip(size, times):
    cfg = vq_vae.Config(shape=(*size, 3), **residual(*(8,) * times))
    state = jax.eval_shape(lambda: vq_vae.init(jax.random.key(0), cfg))
    x = jax.ShapeDtypeStruct((5, *size, 3), jnp.float32)
    codes = jax.eval_shape(lambda state, x: vq_vae.encode(state, x, cfg), state, x)
    assert codes.shape == (5, size[0] >> times, size[1] >> times)
    assert codes.dtype == jnp.int32
    rebuilt = jax.eval_shape(lambda state, z: vq_vae.decode(state, z, cfg), state, codes)
    assert rebuilt.shape == x.shape
    with pytest.raises(ValueError, match=r"at least .* would fit"):
        vq_vae.init(jax.random.key(0), dataclasses.replace(cfg, shape=(3, 31, 1)))


def test_options_of_the_residual_networks_reach_their_parameters():
    cfg = vq_vae.Config(code_size=3, **residual(4, 6, num_blocks=3, block_channels=5))
    params = jax.eval_shape(lambda: vq_vae.init(jax.random.key(0), cfg)).params
    for network in ("encoder", "decoder"):
        stack = params[network]["ResidualStack_0"]
        assert len(stack) == 6
        assert stack["Conv_0"]["kernel"].shape == (3, 3, 6, 5)
    assert params["encoder"]["Conv_2"]["kernel"].shape == (1, 1, 6, 3)
    assert params["decoder"]["ConvTranspose_0"]["kernel"].shape[-1] == 4


def test_codes_of_the_first_stage_are_quantised_on_the_way_back(small):
    state, batch = small
    codes = vq_vae.to_codes(state, batch["x"], TINY)
    assert codes.shape == (4, 2, 3)
    rebuilt = vq_vae.reconstruct(state, batch["x"], TINY)
    np.testing.assert_array_equal(vq_vae.from_codes(state, codes, TINY), rebuilt)


def test_an_encoder_without_vectors_is_refused():
    with pytest.raises(ValueError, match=r"must give \(B, \*positions, 3\)"):
        vq_vae.init(jax.random.key(0), dataclasses.replace(TINY, encoder=DenseDecoder((8,), shape=(6,))))


def test_bfloat16_keeps_parameters_and_metrics_float32():
    cfg = vq_vae.Config(dtype="bfloat16", **residual(8, 8, num_blocks=1))
    batch = {"image": jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)}
    state = jax.eval_shape(lambda batch: vq_vae.init(jax.random.key(0), cfg, batch), batch)
    state, metrics = jax.eval_shape(functools.partial(vq_vae.train_step, cfg=cfg), state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert all(value.dtype == jnp.float32 for value in metrics.values())


@pytest.mark.slow
def test_it_learns_digits():
    train, test = data.load("digits"), data.load("digits", "test")
    cfg = vq_vae.Config(
        encoder=DenseEncoder(widths=(128,)), decoder=DenseDecoder((128,)), optimizer=values.Adam(3e-3)
    )
    options = {"batch_size": 128, "key": jax.random.key(0), "mesh": shard.mesh(1), "sample_every": 0}
    state = jaxgen.fit(vq_vae, cfg, train, steps=600, **options)
    x = test[:]["image"]
    codes = vq_vae.encode(state, x, cfg)
    frequencies = np.bincount(np.ravel(codes), minlength=cfg.num_codes) / codes.size
    assert vq_vae.perplexity(frequencies) > cfg.num_codes / 2
    mse = ((vq_vae.decode(state, codes, cfg) - x) ** 2).mean()
    assert mse < 0.4 * x.var(0).mean()
