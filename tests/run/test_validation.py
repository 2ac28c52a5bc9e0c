"""Validation: the loss of held-out examples, the best checkpoint, early stopping; frozen parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgen
from jaxgen import data, script, shard
from jaxgen.autoencoder import vae
from jaxgen.classical import gmm
from jaxgen.gan import gan
from jaxgen.run import checkpoint, directory, validation
from jaxgen.script import systems
from tests import line

KEY = jax.random.key(0)


def points(split, value):
    return data.Dataset("points", split, {"x": np.full((64, 2), value, np.float32)})


TRAIN, HELD_OUT = points("train", 4.0), points("validation", 1.0)
"""The mean that is learned passes 1 between steps 5 and 6, on its way from 0 to 4."""


def fit(steps=40, **options):
    options = {"validation": HELD_OUT, "validate_every": 2, "sample_every": 0, "save_every": 0, **options}
    return jaxgen.fit(
        line, line.Config(), TRAIN, steps=steps, batch_size=16, key=KEY, mesh=shard.mesh(1), **options
    )


def losses(run_dir):
    return [(row["step"], row["validation_loss"]) for row in directory.read_metrics(run_dir) if len(row) > 4]


def test_validation_is_logged_and_the_best_state_is_kept(tmp_path):
    seen = {}
    fit(
        12,
        run_dir=tmp_path,
        log_every=5,
        on_log=lambda step, row, state: seen.update({step: state.params + 0}),
    )
    rows = {row["step"]: row for row in directory.read_metrics(tmp_path)}
    assert sorted(rows) == sorted(seen) == [2, 4, 5, 6, 8, 10, 12]
    assert "validation_loss" not in rows[5]
    for step in (2, 6, 12):  # with the constant data the loss is that of the parameters
        expected = 0.5 * ((seen[step] - 1) ** 2).sum()
        assert rows[step]["validation_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert checkpoint.steps(tmp_path, "best") == [6]
    _, _, best = jaxgen.load(tmp_path, step="best")
    np.testing.assert_array_equal(best.params, seen[6])
    assert int(jaxgen.load(tmp_path)[2].step) == 12


def test_validation_changes_no_bit_of_training():
    with_it, without = fit(9), fit(9, validation=None)
    np.testing.assert_array_equal(with_it.params, without.params)


def test_patience_stops_and_a_stopped_run_stays_stopped(tmp_path):
    fit(run_dir=tmp_path, patience=3)
    assert checkpoint.steps(tmp_path) == [12]
    fit(run_dir=tmp_path, patience=3)
    assert checkpoint.steps(tmp_path) == [12]
    fit(run_dir=tmp_path, patience=4)
    assert checkpoint.steps(tmp_path) == [12, 14]


def test_patience_returns_the_best_state(tmp_path):
    best = fit(6)
    for options in ({}, {"run_dir": tmp_path}, {"run_dir": tmp_path}, {"steps": 8}):
        state = fit(patience=3, **options)
        assert int(state.step) == 6
        np.testing.assert_array_equal(state.params, best.params)
    assert int(jaxgen.load(tmp_path)[2].step) == 12
    assert int(fit(8).step) == 8


def test_an_evaluation_says_which_state_it_is_of(tmp_path, capsys):
    best = fit(8, run_dir=tmp_path, patience=3)
    for state, words in (
        (best, "evaluation of step 6, which has the lowest validation loss"),
        (jaxgen.load(tmp_path)[2], "evaluation of step 8, not step 6, which has the lowest validation loss"),
    ):
        script.evaluate_run(
            line, line.Config(), state, TRAIN, HELD_OUT, tmp_path, num_samples=0, evaluate=lambda *_: {}
        )
        assert capsys.readouterr().out.startswith(words)


def test_a_resumed_run_remembers_its_best(tmp_path):
    fit(8, run_dir=tmp_path)
    fit(16, run_dir=tmp_path)
    assert checkpoint.steps(tmp_path, "best") == [6]
    straight = tmp_path / "straight"
    fit(16, run_dir=straight)
    assert losses(straight) == losses(tmp_path)


def test_the_best_of_losses_and_when_training_is_over():
    history = [(2, 3.0), (4, 1.0), (6, 1.0), (8, float("nan")), (10, 2.0)]
    assert validation.best(history) == 4
    assert validation.best([(2, float("inf"))]) is None
    assert validation.is_over(history, 3)
    assert not validation.is_over(history, 4)
    assert not validation.is_over(history, None)


def test_what_validates_a_family():
    mesh, key = shard.mesh(1), jax.random.key(1)
    digits = data.load("digits", "validation")
    x = np.asarray(data.load("ring", "test")[:500]["x"])
    cfg = gmm.Config(shape=(2,), num_components=2)
    state = jax.jit(functools.partial(gmm.init, cfg=cfg))(KEY, batch={"x": x})
    measured = validation.measured(gmm, cfg, data.Dataset("mine", "test", {"x": x}), 100, key, mesh)
    nll = jax.jit(lambda state: -gmm.log_prob(state, x, cfg).mean())
    assert measured(state) == pytest.approx(float(nll(state)), rel=1e-4)
    with pytest.raises(ValueError, match=r"gan has neither a loss nor a log_prob to validate by"):
        validation.measured(gan, gan.Config(), digits, 32, key, mesh)


def test_a_streamed_set_validates_as_a_resident_one():
    mesh, x = shard.mesh(1), np.random.RandomState(0).normal(size=(64, 2)).astype(np.float32)
    streamed = data.StreamedDataset("mine", "validation", [{"x": row} for row in x], (2,), 0)
    resident = data.Dataset("mine", "validation", {"x": x})
    state = line.init(KEY, line.Config())
    values = [
        validation.measured(line, line.Config(), each, 16, KEY, mesh)(state) for each in (streamed, resident)
    ]
    assert (
        values[0] == pytest.approx(values[1], rel=1e-5) == pytest.approx(0.5 * (x**2).sum(1).mean(), rel=1e-5)
    )


def test_patience_needs_validation(tmp_path, capsys):
    with pytest.raises(ValueError, match="give held-out examples as `validation`"):
        fit(validation=None, patience=2)
    with pytest.raises(ValueError, match="must be at least 1"):
        fit(validate_every=0)
    fit(3, validation=None, run_dir=tmp_path)
    with pytest.raises(jaxgen.RunError, match="no best checkpoint: it was trained without validation"):
        jaxgen.load(tmp_path, step="best")
    system = systems.System(family=vae, config=vae.Config(), paper="")
    with pytest.raises(ValueError, match="give --validate-every too"):
        systems.run_system("vae", system, systems.Options(patience=2), vae.Config())


def test_frozen_parts_stay_as_they_are():
    """As README shows it: parts of the parameters are frozen by an optimizer of Optax."""
    train = data.load("digits")
    labels = {"encoder": "frozen", "decoder": "trained", "likelihood": "trained"}
    optimizer = optax.multi_transform({"trained": optax.adam(1e-3), "frozen": optax.set_to_zero()}, labels)
    batch = jax.tree.map(jnp.asarray, dict(train[:8]))

    @jax.jit
    def moved(state, batch):
        return jax.tree.map(lambda a, b: (a != b).any(), state.params, step(state, batch)[0].params)

    cfg = vae.Config(shape=train.shape, num_latents=2, optimizer=optimizer)
    step = functools.partial(vae.train_step, cfg=cfg)
    found = moved(jax.jit(functools.partial(vae.init, cfg=cfg))(KEY), batch)
    assert not any(jax.tree.leaves(found["encoder"]))
    assert all(jax.tree.leaves(found["decoder"]["out"]))
