"""What every family promises, checked for each one found by walking the package."""

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, shard, types
from jaxgen.evaluation import mmd
from jaxgen.run import directory
from jaxgen.types import observed

FAMILIES = jaxgen.families()

SMALL = {
    "jaxgen.autoencoder.ae": {"hidden": (32,), "num_latents": 4},
    "jaxgen.autoencoder.vae": {"hidden": (32,), "num_latents": 4},
    "jaxgen.autoencoder.vq_vae": {"hidden": (32,), "num_codes": 16, "code_size": 4},
    "jaxgen.classical.gmm": {"num_components": 2, "covariance": "diagonal"},
    "jaxgen.classical.hmm": {"num_states": 2},
    "jaxgen.classical.lda": {"num_topics": 3, "max_inner_steps": 20},
    "jaxgen.classical.plsa": {"num_topics": 3, "fold_steps": 5},
    "jaxgen.diffusion.consistency": {"network": "mlp", "hidden": (64, 64)},
    "jaxgen.diffusion.ddpm": {"network": "mlp", "hidden": (64, 64), "num_steps": 50, "sampling_steps": 10},
    "jaxgen.diffusion.edm": {"network": "mlp", "hidden": (64, 64)},
    "jaxgen.diffusion.flow_matching": {"network": "mlp", "hidden": (64, 64), "sampling_steps": 10},
    "jaxgen.diffusion.latent": {
        "first_options": (("hidden", (32,)), ("num_latents", 4)),
        "hidden": (64, 64),
        "num_steps": 50,
        "sampling_steps": 10,
    },
}
"""Config values that make a family quick; one not named here is tested with its defaults."""

DATA = {"jaxgen.classical.hmm": "weather", "jaxgen.classical.markov": "weather"}
"""Data sets of the families that cannot take the default, digits."""

HEAVY = ("orbax", "tensorflow_datasets", "grain", "matplotlib", "tyro", "sklearn", "scipy", "PIL")

BATCH_SIZE = 32


@dataclasses.dataclass
class Case:
    name: str
    family: object
    cfg: object
    dataset: data.Dataset
    batch: dict
    state: object

    @functools.cached_property
    def step(self):
        return jax.jit(functools.partial(self.family.train_step, cfg=self.cfg))

    def fit(self, steps, **options):
        options = {"sample_every": 0, "save_every": 0, "key": jax.random.key(3), **options}
        return jaxgen.fit(self.family, self.cfg, self.dataset, steps=steps, batch_size=BATCH_SIZE, **options)


@functools.cache
def make_case(name):
    family = FAMILIES[name]
    dataset = data.load(DATA.get(name, "digits"))
    cfg = types.shape_to(dataset, family.Config(**SMALL.get(name, {})))
    batch = jax.tree.map(jnp.asarray, dict(dataset[:BATCH_SIZE]))
    return Case(name, family, cfg, dataset, batch, family.init(jax.random.key(0), cfg, batch))


@pytest.fixture(params=sorted(FAMILIES))
def case(request):
    return make_case(request.param)


def unkeyed(tree):
    """The tree with PRNG keys as the integers they are, for comparison."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def assert_same_bits(first, second):
    chex.assert_trees_all_equal(unkeyed(first), unkeyed(second))


def assert_close(first, second, tolerance=2e-4):
    chex.assert_trees_all_close(unkeyed(first), unkeyed(second), rtol=tolerance, atol=tolerance)


def test_the_walk_finds_the_families():
    assert "jaxgen.autoencoder.vae" in FAMILIES


def test_config_is_frozen_static_and_survives_json(case, tmp_path):
    cfg = case.cfg
    assert not jax.tree.leaves(cfg)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.shape = ()
    directory.write_text(tmp_path / "config.json", json.dumps(directory.describe(case.family, cfg)))
    again = directory.read_config(case.family, tmp_path)
    assert again == cfg
    assert hash(again) == hash(cfg)


def test_every_config_field_is_explained(case):
    body = ast.parse(inspect.getsource(case.family.Config)).body[0].body
    for field, following in itertools.pairwise([*body, None]):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(following, ast.Expr), field.target.id
            assert isinstance(following.value.value, str), field.target.id


def test_state_is_a_named_tuple_of_distinct_arrays(case):
    state = case.state
    assert isinstance(state, tuple)
    assert {"step", "key"} <= set(state._fields)
    assert state.step.dtype == jnp.int32
    assert state.step.shape == ()
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    leaves = jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert len({id(leaf) for leaf in leaves}) == len(leaves)


def test_init_needs_no_batch_and_keeps_its_shapes(case):
    without = jax.eval_shape(lambda: case.family.init(jax.random.key(0), case.cfg))
    chex.assert_trees_all_equal_shapes_and_dtypes(without, case.state)


def test_step_is_pure(case):
    before = unkeyed(case.state)
    first, second = (case.step(case.state, case.batch) for _ in range(2))
    assert_same_bits(first, second)
    assert_same_bits(before, unkeyed(case.state))
    assert int(first[0].step) == int(case.state.step) + 1
    assert_same_bits(first[0].key, case.state.key)
    chex.assert_trees_all_equal_shapes_and_dtypes(first[0], case.state)


def test_metrics_are_finite_scalars_on_the_device(case):
    _, metrics = case.step(case.state, case.batch)
    assert metrics
    for name, value in metrics.items():
        assert isinstance(value, jax.Array), name
        assert value.shape == (), name
        assert np.isfinite(value), name


def test_jit_equals_eager_and_scan_equals_loop(case):
    eager = case.family.train_step(case.state, case.batch, case.cfg)
    assert_close(eager, case.step(case.state, case.batch))
    looped = case.state
    for _ in range(3):
        looped, _ = case.step(looped, case.batch)
    scanned, _ = jax.jit(
        lambda state: jax.lax.scan(
            lambda s, _: case.family.train_step(s, case.batch, case.cfg), state, length=3
        )
    )(case.state)
    assert_close(scanned, looped)


def test_equal_configs_do_not_retrace(case):
    chex.clear_trace_counter()

    @functools.partial(jax.jit, static_argnums=2)
    @chex.assert_max_traces(n=1)
    def step(state, batch, cfg):
        return case.family.train_step(state, batch, cfg)

    for _ in range(2):
        step(case.state, case.batch, dataclasses.replace(case.cfg))


def test_state_can_be_donated(case):
    step = jax.jit(functools.partial(case.family.train_step, cfg=case.cfg), donate_argnums=0)
    kept = state = jax.tree.map(jnp.copy, case.state)
    for _ in range(3):
        state, _ = step(state, case.batch)
    reference = case.state
    for _ in range(3):
        reference, _ = case.step(reference, case.batch)
    assert_close(state, reference)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(kept))


def test_samples_look_like_the_data(case):
    draw = jax.jit(lambda key: case.family.sample(key, case.state, 5, case.cfg))
    first, again, other = (np.asarray(draw(jax.random.key(seed))) for seed in (0, 0, 1))
    assert first.shape == (5, *case.dataset.shape)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_densities_have_one_number_an_example(case):
    x = observed(case.batch)
    key, checked = jax.random.key(1), 0
    if hasattr(case.family, "log_prob"):
        value = case.family.log_prob(case.state, x, case.cfg)
        chex.assert_shape(value, (BATCH_SIZE,))
        checked += 1
    if hasattr(case.family, "elbo"):
        value = case.family.elbo(key, case.state, x, case.cfg)
        chex.assert_shape(value, (BATCH_SIZE,))
        assert np.isfinite(value).all()
        checked += 1
    if hasattr(case.family, "reconstruct"):
        assert case.family.reconstruct(case.state, x, case.cfg).shape == x.shape
        checked += 1
    if not checked:
        pytest.skip("no density and no reconstruction")


def test_eight_devices_equal_one(case):
    one, eight = (case.fit(3, mesh=shard.mesh(data=count)) for count in (1, 8))
    assert_close(one, eight, 1e-3)


@pytest.mark.slow
def test_a_sharded_state_equals_a_replicated_one(case):
    replicated, sharded = (case.fit(3, mesh=shard.mesh(fsdp=fsdp)) for fsdp in (1, 4))
    assert_close(replicated, sharded, 1e-3)


def test_resuming_equals_a_straight_run_bit_for_bit(case, tmp_path):
    straight = case.fit(7)
    case.fit(3, run_dir=tmp_path)
    assert_same_bits(case.fit(7, run_dir=tmp_path), straight)


@pytest.mark.slow
def test_checkpoints_move_between_device_counts(case, tmp_path):
    eight, one = (shard.mesh(data=data, fsdp=fsdp) for data, fsdp in ((2, 4), (1, 1)))
    saved = case.fit(2, run_dir=tmp_path, mesh=eight)
    restored = case.fit(2, run_dir=tmp_path, mesh=one)
    assert_same_bits(saved, restored)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(restored)} == {1}
    case.fit(3, run_dir=tmp_path, mesh=one)
    back = case.fit(3, run_dir=tmp_path, mesh=eight)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(back)} == {8}
    family, cfg, loaded = jaxgen.load(tmp_path)
    assert (family, cfg) == (case.family, case.cfg)
    assert_same_bits(loaded, back)


def test_training_helps_on_real_data(case):
    rows = []
    state = case.fit(300, mesh=shard.mesh(1), log_every=50, on_log=lambda step, metrics: rows.append(metrics))
    if {"loss", "nll"} & rows[0].keys():
        name = "loss" if "loss" in rows[0] else "nll"
        assert rows[-1][name] < rows[0][name]
        return
    # Players of a game have losses that need not fall: their samples must come nearer to the data.
    flat = lambda x: np.asarray(x).reshape(len(x), -1)
    real = flat(observed(case.dataset[:500]))
    draw = jax.jit(lambda state: case.family.sample(jax.random.key(4), state, 500, case.cfg))
    before, after = (mmd.mmd2(real, flat(draw(s))) for s in (case.state, state))
    assert after < 0.8 * before


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_import_is_light(name):
    code = f"import sys, {name}; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
