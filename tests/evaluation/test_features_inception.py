"""Inception-v3 against the same network in PyTorch, on random weights: the real ones are not at hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.evaluation import features
from jaxgen.evaluation.features import inception, inception_network, ported
from tests.evaluation import random_state, second_opinion


@pytest.fixture(scope="module")
def golden():
    return second_opinion.golden("inception_v3")


@pytest.fixture(scope="module")
def state(golden):
    return random_state.random_state(golden["shapes"])


@pytest.fixture(scope="module")
def found(state):
    """Activations of every layer."""
    x = ported.resized(jnp.asarray(random_state.random_images()), inception.SIZE, antialias=False)
    found = second_opinion.by_jax(inception_network.Network(), inception.convert(state), x)
    return {name.removesuffix(".conv"): values for name, values in found.items()}


@pytest.mark.slow
def test_every_layer_is_what_pytorch_makes_of_random_weights(found, golden):
    assert len(golden["layers"]) == 94 + 2
    second_opinion.check_summaries(found, golden)


@pytest.mark.slow
def test_every_entry_is_what_pytorch_makes_of_random_weights(found, tmp_path):
    wanted = second_opinion.by_torch("inception_v3", "-", random_state.random_images(), 299, tmp_path)
    assert second_opinion.largest_error(found, wanted) < 2e-5


@pytest.mark.slow
def test_a_users_file_becomes_an_extractor(found, state, tmp_path):
    np.savez(tmp_path / "weights.npz", **state)
    extractor = features.load(f"inception-v3:{tmp_path}/weights.npz")
    assert extractor.name.startswith("inception-v3-")
    assert not features.is_reference(extractor)
    images = random_state.random_images()
    scale = float(np.abs(found["features"]).max())
    np.testing.assert_allclose(features.of(extractor, images), found["features"], atol=1e-5 * scale)


@pytest.mark.slow
def test_weights_of_another_network_are_refused(golden, tmp_path):
    file = tmp_path / "weights.npz"
    state = {name: np.ones(shape, np.int8) for name, shape in golden["shapes"].items()}
    kernel, bias = "Mixed_7c.branch_pool.conv.weight", "Mixed_7c.branch_pool.bn.bias"
    for changed, message in [
        (
            {**state, "fc.weight": state["fc.weight"][:1000]},
            r"fc.kernel is \(2048, 1000\), not \(2048, 1008\)",
        ),
        ({**state, kernel: state[kernel][:, :7]}, "branch_pool.conv.kernel is .*, not"),
        ({name: state[name] for name in state if name != kernel}, "branch_pool.conv.bias is None, not"),
        ({name: state[name] for name in state if name != bias}, "Mixed_7c.branch_pool.bn.bias"),
    ]:
        np.savez(file, **changed)
        with pytest.raises(ValueError, match=f"weights.npz does not hold the Inception of FID: .*{message}"):
            inception.load(file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read as an npz archive"):
        inception.load(file)
    with pytest.raises(ValueError, match=r"none.pth cannot be read: No such file"):
        inception.load(tmp_path / "none.pth")


def test_averages_leave_padding_out():
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    average = inception_network.average_pool(x)[0, ..., 0]
    np.testing.assert_allclose(average, [[3, 3.5, 4], [4.5, 5, 5.5], [6, 6.5, 7]], rtol=1e-6)
