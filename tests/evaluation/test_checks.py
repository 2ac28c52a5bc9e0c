import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxgen import shard
from jaxgen.evaluation import checks


def test_arrays_stay_where_they_are():
    placed = shard.put_batch({"x": np.ones((16, 3), np.float32)}, shard.mesh())["x"]
    host = np.ones((4, 3))
    first, second = checks.features(first=placed, second=host)
    assert first is placed
    assert second is host


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float16, ml_dtypes.bfloat16])
def test_narrow_numbers_are_widened(dtype):
    (array,) = checks.features(x=np.ones((2, 3), dtype))
    assert array.dtype == np.float32


def test_values_are_counted_wherever_they_lie():
    x = np.ones((16, 3), np.float32)
    x[3, 1], x[4, 0] = np.nan, -np.inf
    for array in (x, jnp.asarray(x), shard.put_batch({"x": x}, shard.mesh())["x"]):
        with pytest.raises(ValueError, match="x has 2 values that are not finite"):
            checks.features(x=array)


def test_traced_values_pass_and_their_shapes_do_not():
    assert jax.jit(lambda x: checks.features(x=x)[0].sum())(np.full((2, 2), np.inf)) == np.inf
    with pytest.raises(ValueError, match="x has 2 examples, at least 3 are needed"):
        jax.jit(lambda x: checks.features(x=x, at_least=3)[0])(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([["a", "b"]], "x must be numbers, not <U1"),
        (np.ones((2, 2), complex), "x must be real numbers"),
        (np.ones(4), r"x must be \(examples, features\), not \(4,\)"),
        (np.ones((4, 0)), r"not \(4, 0\)"),
        (np.ones((0, 4)), "x has 0 examples, at least 1 are needed"),
    ],
)
def test_what_is_no_set_of_features_is_named(values, said):
    with pytest.raises(ValueError, match=said):
        checks.features(x=values)


def test_labels():
    assert checks.labels(3, 2, y=np.array([True, False, True]))[0].dtype == np.int64
    with pytest.raises(ValueError, match="y has class 5, beyond the 3 classes"):
        checks.labels(4, 3, y=[0, 1, 2, 5])
    with pytest.raises(ValueError, match="y must be integers from 0, not int64 from -1"):
        checks.labels(2, y=np.array([-1, 0]))


def test_metrics_are_light_to_import():
    names = (
        "checks denoise disentangle distances frechet kid memorisation mmd modes outliers parzen prdc probe "
        "scores two_sample"
    )
    code = (
        "import sys, jaxgen.data; before = set(sys.modules)\n"
        f"for name in {names.split()}: __import__('jaxgen.evaluation.' + name)\n"
        "heavy = {name.split('.')[0] for name in set(sys.modules) - before} & {'sklearn', 'scipy', 'torch'}\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
