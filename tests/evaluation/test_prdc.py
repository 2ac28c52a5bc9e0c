import jax
import numpy as np
import pytest

from jaxgen import shard
from jaxgen.evaluation import distances
from jaxgen.evaluation import prdc as prdc_module
from jaxgen.evaluation.prdc import prdc

NAMES = ["precision", "recall", "density", "coverage"]


def brute_force(real, fake, k):
    """The definitions, in float64, with whole matrices."""
    distance = lambda a, b: np.sqrt(((a[:, None] - b) ** 2).sum(-1))
    radius = lambda a: np.sort(distance(a, a) + np.diag(np.full(len(a), np.inf)), 1)[:, k - 1]
    across, real_radii, fake_radii = distance(real, fake), radius(real), radius(fake)
    inside = across <= real_radii[:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (across <= fake_radii).any(1).mean(),
        "density": inside.sum() / (k * len(fake)),
        "coverage": inside.any(1).mean(),
    }


@pytest.mark.parametrize(("n", "m", "d", "k"), [(200, 300, 2, 3), (300, 200, 40, 5), (150, 150, 5, 1)])
def test_agrees_with_the_definition(n, m, d, k):
    rng = np.random.default_rng(d)
    real, fake = rng.normal(size=(n, d)) + 50, 0.8 * rng.normal(size=(m, d)) + 50.2
    values = prdc(real, fake, k)
    assert list(values) == NAMES
    assert values == pytest.approx(brute_force(real, fake, k), abs=1e-9)


def test_agrees_with_the_authors_package():
    reference = pytest.importorskip("prdc", reason="pip install prdc")
    rng = np.random.default_rng(0)
    real = rng.normal(size=(700, 32)).astype(np.float32)
    fake = (1.1 * rng.normal(size=(600, 32))).astype(np.float32)
    assert prdc(real, fake, 4) == pytest.approx(reference.compute_prdc(real, fake, 4), abs=1e-6)


@pytest.mark.parametrize("d", [2, 16, 64, 500])
def test_a_set_is_all_of_itself(d):
    x = np.random.default_rng(1).normal(size=(400, d))
    assert prdc(x, x) == {**dict.fromkeys(NAMES, 1.0), "density": 1.2}


@pytest.mark.parametrize("d", [2, 64])
def test_repeated_points_are_inside_balls_of_radius_zero(d):
    """Six copies of each point: every fifth neighbour is at distance 0, and each ball holds six."""
    x = np.repeat(np.random.default_rng(1).normal(size=(50, d)) + 30, 6, 0)
    assert prdc(x, x) == {**dict.fromkeys(NAMES, 1.0), "density": 1.2}
    near = x + 0.02 * np.random.default_rng(2).normal(size=x.shape)
    assert prdc(x, near)["precision"] == 0.0


def test_equal_laws_have_density_one_and_the_known_coverage():
    rng = np.random.default_rng(2)
    values = [prdc(*rng.normal(size=(2, 1000, 4)), k=3) for _ in range(12)]
    for name, expected in (("density", 1.0), ("coverage", 1 - 2.0**-3)):
        found = np.array([value[name] for value in values])
        assert abs(found.mean() - expected) < 4 * found.std(ddof=1) / np.sqrt(len(found)) + 1e-3


def test_dropped_mode_costs_recall_and_junk_costs_precision():
    rng = np.random.default_rng(3)
    real = rng.normal(size=(600, 8)) + 20 * rng.integers(0, 2, (600, 1))
    one_mode = rng.normal(size=(600, 8))
    dropped = prdc(real, one_mode)
    assert dropped["precision"] > 0.9
    assert dropped["recall"] == pytest.approx((real[:, 0] < 10).mean(), abs=0.1)
    assert dropped["coverage"] < 0.6
    junk = prdc(real, np.concatenate([real[:300] + 0.01, real[300:] + 1e3]))
    assert junk["precision"] == 0.5


def test_collapse_to_one_point():
    rng = np.random.default_rng(4)
    values = prdc(rng.normal(size=(300, 4)), np.zeros((300, 4)))
    assert values["precision"] == 1.0
    assert values["recall"] == 0.0
    assert values["coverage"] < 0.1


@pytest.mark.slow
def test_split_over_devices_and_into_tiles(monkeypatch):
    rng = np.random.default_rng(5)
    real, fake = (rng.normal(size=(n, 24)).astype(np.float32) for n in (640, 480))
    whole = prdc(real, fake)
    mesh = shard.mesh()
    placed = [shard.put_batch({"x": x}, mesh)["x"] for x in (real, fake)]
    assert prdc(*placed) == whole
    assert prdc(placed[0], fake) == whole
    monkeypatch.setattr(distances, "TILE_BYTES", 2**18)
    assert prdc(real[1:], fake) == pytest.approx(brute_force(real[1:], fake, 5), abs=1e-9)


def test_memory_does_not_grow_with_the_product_of_the_sizes():
    n = 50_000
    features = jax.ShapeDtypeStruct((n, 16), np.float32)
    compiled = prdc_module._statistics.lower(features, features, features, features, 5).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * distances.TILE_BYTES < n * n * 4 / 30


def test_bad_input_is_named():
    x = np.zeros((10, 4))
    with pytest.raises(ValueError, match="real has 4 features and fake has 5"):
        prdc(x, np.zeros((10, 5)))
    with pytest.raises(ValueError, match="fake has 5 examples, at least 6 are needed for k = 5"):
        prdc(x, x[:5])
    with pytest.raises(ValueError, match="real has 1 values that are not finite"):
        prdc(np.where(np.arange(40).reshape(10, 4) == 3, np.inf, x), x)
    with pytest.raises(ValueError, match=r"real must be \(examples, features\), not \(10, 2, 2\)"):
        prdc(x.reshape(10, 2, 2), x)
    with pytest.raises(ValueError, match="k must be at least 1"):
        prdc(x, x, k=0)
