"""Shuffled batches: a bijection every epoch, uniform, and the same wherever they are computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxgen import data
from jaxgen.data.batching import permute


def permutation(size, *words):
    return np.asarray(permute(jnp.arange(size, dtype=jnp.uint32), size, words))


def numbered(size):
    """A data set whose every example is its own number."""
    return data.Dataset("numbered", "train", {"x": np.arange(size, dtype=np.float32)[:, None]})


@pytest.mark.parametrize(
    "sizes",
    [(1, 2, 3, 7, 65), (1797,), pytest.param((*range(4, 20), 30, 49, 50, 64, 60000), marks=pytest.mark.slow)],
)
def test_permute_is_a_bijection(sizes):
    # Each size is compiled anew, and once run: optimising would take most of the time.
    fast = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    epochs = jnp.arange(4, dtype=jnp.uint32)[:, None]
    for size in sizes:
        index = jnp.arange(size, dtype=jnp.uint32)
        permutations = fast(lambda index, words, size=size: permute(index, size, words))(index, (3, epochs))
        np.testing.assert_array_equal(np.sort(permutations, 1), np.tile(index, (4, 1)))


@pytest.mark.parametrize("words", [lambda i: (jnp.uint32(0), i), lambda i: (i, jnp.uint32(0))])
def test_consecutive_epochs_and_seeds_are_unrelated(words):
    keys = jnp.arange(100, dtype=jnp.uint32)[:, None]
    permutations = np.asarray(permute(jnp.arange(1797, dtype=jnp.uint32), 1797, words(keys)))
    # A uniform permutation keeps Poisson(1) elements where another has them.
    agreements = (permutations[1:] == permutations[:-1]).sum(1)
    assert agreements.mean() == pytest.approx(1, abs=0.5)
    assert agreements.max() < 10


@pytest.mark.parametrize("size", [2, 3, 5, 7, 8, 12, pytest.param(37, marks=pytest.mark.slow)])
def test_positions_are_uniform_over_epochs(size):
    epochs = 200_000
    keys = jnp.arange(epochs, dtype=jnp.uint32)[:, None]
    permutations = np.asarray(permute(jnp.arange(size, dtype=jnp.uint32), size, (jnp.uint32(7), keys)))
    counts = np.stack([np.bincount(column, minlength=size) for column in permutations.T])
    statistic = ((counts - epochs / size) ** 2 / (epochs / size)).sum()
    # Rows and columns of the counts both sum to `epochs`, which leaves (size - 1)^2 degrees of freedom, each
    # of variance 1 / (1 - 1 / size) of a multinomial's.
    degrees = (size - 1) ** 2
    assert scipy.stats.chi2.sf(statistic * (size - 1) / size, degrees) > 1e-4
    pairs = np.bincount(permutations[:, 0] * size + permutations[:, 1], minlength=size**2)
    pairs = pairs.reshape(size, size)[~np.eye(size, dtype=bool)]
    if size > 2:
        assert scipy.stats.chisquare(pairs).pvalue > 1e-4


def test_all_orders_of_four_are_equally_likely():
    keys = jnp.arange(24_000, dtype=jnp.uint32)[:, None]
    orders = np.asarray(permute(jnp.arange(4, dtype=jnp.uint32), 4, (jnp.uint32(1), keys)))
    counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_neighbours_are_not_correlated():
    size, keys = 60_000, jnp.arange(8, dtype=jnp.uint32)[:, None]
    permutations = np.asarray(permute(jnp.arange(size, dtype=jnp.uint32), size, (jnp.uint32(0), keys)))
    for lag in (1, 2, 245, 1000):
        for row in permutations:
            correlation = np.corrcoef(row[:-lag], row[lag:])[0, 1]
            assert abs(correlation) < 5 / np.sqrt(size)
    # The gap between neighbours of a uniform permutation has the triangular distribution.
    gaps = np.abs(np.diff(permutations.astype(int), axis=1)).ravel() / size
    assert scipy.stats.kstest(gaps, lambda g: 1 - (1 - g) ** 2).pvalue > 1e-4


@pytest.mark.parametrize(("size", "batch_size"), [(10, 3), (7, 7), (5, 12), (1, 4), (64, 16), (13, 1)])
def test_each_example_once_an_epoch(size, batch_size):
    get = jax.jit(data.batches(numbered(size), batch_size, seed=5))
    epochs = 2 * batch_size
    stream = np.concatenate([get(step)["x"][:, 0] for step in range(epochs * size // batch_size)])
    order = stream.reshape(-1, size)
    np.testing.assert_array_equal(np.sort(order, 1), np.tile(np.arange(size), (len(order), 1)))
    if size > 5:
        assert len(np.unique(order, axis=0)) == len(order)


def test_late_steps_are_exact():
    size, batch_size = 60_000, 35_791
    batches = data.batches(numbered(size), batch_size, seed=1)
    for step in (2**31 - 1, 2**31 - 60_000, 123_456_789):
        position = [step * batch_size + j for j in range(0, batch_size, 1000)]
        epochs = np.array([p // size % 2**32 for p in position], np.uint32)
        index = np.array([p % size for p in position], np.uint32)
        expected = permute(index, size, (jnp.uint32(1), epochs))
        np.testing.assert_array_equal(batches(step)["x"][::1000, 0], expected)


@pytest.mark.slow
def test_same_bits_eager_jitted_scanned_and_replicated():
    digits = data.load("digits")
    batches = data.batches(digits, 100, seed=2)
    eager = [batches(step) for step in range(20)]
    jitted = jax.jit(lambda batches, step: batches(step))

    @jax.jit
    def scanned(batches):
        return jax.lax.scan(lambda _, step: (None, batches(step)), None, jnp.arange(20))[1]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.device_put(batches, jax.NamedSharding(mesh, jax.P()))
    split = jax.jit(lambda batches, step: batches(step), out_shardings=jax.NamedSharding(mesh, jax.P()))
    together = scanned(batches)
    for step in range(20):
        for other in (
            jitted(batches, step),
            split(everywhere, step),
            {key: array[step] for key, array in together.items()},
        ):
            for key in ("image", "label"):
                np.testing.assert_array_equal(eager[step][key], other[key])


def test_batches_are_converted_examples_of_the_data_set():
    digits = data.load("digits")
    batch = jax.jit(data.batches(digits, 32, seed=0))(3)
    assert (batch["image"].shape, batch["image"].dtype) == ((32, 8, 8, 1), jnp.float32)
    assert (batch["label"].shape, batch["label"].dtype) == ((32,), jnp.int32)
    everything = digits[:]
    for image, label in zip(np.asarray(batch["image"]), batch["label"], strict=True):
        matches = (everything["image"] == image).all((1, 2, 3))
        assert label in everything["label"][matches]


def test_pixels_reach_both_ends_exactly_when_compiled():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    dataset = data.Dataset("levels", "train", {"image": image})
    compiled = jax.jit(data.batches(dataset, 1, seed=0))(0)["image"]
    assert (compiled.min(), compiled.max()) == (-1, 1)
    np.testing.assert_allclose(compiled, image / 127.5 - 1, atol=1.2e-7)
    np.testing.assert_array_equal(dataset[:]["image"], compiled)
    np.testing.assert_array_equal(np.round((compiled + 1) * 127.5), image)


def test_the_arrays_are_arguments_not_constants():
    batches = data.batches(data.load("digits"), 8, seed=0)
    assert len(jax.tree.leaves(batches)) == 3
    constants = jax.make_jaxpr(lambda batches, step: batches(step))(batches, 0).consts
    assert sum(np.size(constant) for constant in constants) < 100
    assert jax.tree.map(lambda leaf: leaf, batches).batch_size == 8


@pytest.mark.parametrize(
    ("batch_size", "seed", "message"),
    [(0, 0, "at least 1"), (8, -1, "seed"), (8, 2**32, "seed"), (2**22, 0, "batch of at most 1493382")],
)
def test_bad_batches_are_refused(batch_size, seed, message):
    with pytest.raises(data.DataError, match=message):
        data.batches(data.load("digits"), batch_size, seed)


class Source:
    """Random-access examples that are their own number."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": np.int32(index)}


def streamed(size):
    return data.StreamedDataset("numbered", "train", Source(size), (2, 2, 1))


def test_streamed_epochs_visit_each_example_once_in_new_orders():
    batches = data.batches(streamed(21), 6, seed=3)
    stream = np.concatenate([batches(step)["label"] for step in range(14)])
    order = stream.reshape(4, 21)
    np.testing.assert_array_equal(np.sort(order, 1), np.tile(np.arange(21), (4, 1)))
    assert len(np.unique(order, axis=0)) == 4
    other = np.concatenate([data.batches(streamed(21), 6, seed=4)(step)["label"] for step in range(14)])
    assert not (other.reshape(4, 21)[:3] == order[1:]).all(1).any()


def test_streamed_batches_are_a_function_of_the_step_alone():
    batches = data.batches(streamed(50), 8, seed=1)
    late = batches(1000)
    batches(3)
    np.testing.assert_array_equal(batches(1000)["image"], late["image"])
    np.testing.assert_array_equal(data.batches(streamed(50), 8, seed=1)(1000)["image"], late["image"])
    assert late["image"].dtype == np.float32
    assert late["label"].dtype == np.int32
    np.testing.assert_allclose(late["image"][:, 0, 0, 0], late["label"] / 127.5 - 1, atol=1e-7)


def test_streamed_iteration_resumes_where_asked():
    batches = data.batches(streamed(50), 8, seed=1)
    iterator = batches.iterate(start=17)
    for step in range(17, 40):
        np.testing.assert_array_equal(next(iterator)["label"], batches(step)["label"])


def test_slices_of_processes_make_up_the_global_batch():
    whole = data.batches(streamed(50), 12, seed=9, process=(0, 1))
    for count in (2, 3, 4):
        parts = [data.batches(streamed(50), 12, seed=9, process=(k, count)) for k in range(count)]
        for step in (0, 1, 7, 100):
            joined = np.concatenate([part(step)["label"] for part in parts])
            np.testing.assert_array_equal(joined, whole(step)["label"])
    with pytest.raises(data.DataError, match="5 processes cannot share a batch of 12"):
        data.batches(streamed(50), 12, seed=9, process=(0, 5))
