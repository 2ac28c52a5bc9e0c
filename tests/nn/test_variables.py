"""Networks of one's own with running statistics and random numbers, in every family that takes networks."""

import dataclasses
import functools
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, shard, values
from jaxgen.autoencoder import ae, vae
from jaxgen.flow import realnvp
from jaxgen.likelihoods import Gaussian
from jaxgen.nn import variables
from jaxgen.run import validation
from jaxgen.types import observed
from tests.test_protocol import FAMILIES, assert_close, assert_same_bits, make_case

KEY = jax.random.key(0)
FACTS = ("shape", "num_outputs", "num_labels", "dtype")
FLOWS = ("glow", "maf", "realnvp", "realnvp_images", "tarflow")
"""Families whose networks have parameters alone."""


class Hidden(nn.Module):
    """A network of a user: BatchNorm and Dropout."""

    num_outputs: int | None = None
    shape: tuple[int, ...] | None = None
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(nn.Dense(64)(x)))
        shape = (self.num_outputs,) if self.shape is None else self.shape
        return nn.Dense(int(np.prod(shape)), name="out")(x).reshape(len(x), *shape)


class Around(nn.Module):
    """BatchNorm and Dropout before any network."""

    inner: nn.Module
    shape: tuple[int, ...] | None = None
    num_outputs: int | None = None
    num_labels: int | None = None
    dtype: str | None = None

    @nn.compact
    def __call__(self, x, *rest, train=False, **options):
        inner = self.filled(parent=self, name="inside")
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return inner(x, *rest, **variables.told(inner, train), **options)

    def filled(self, **options):
        facts = {name: getattr(self, name) for name in FACTS if getattr(self.inner, name, ...) is None}
        return self.inner.clone(**facts, **options)

    def empty_cache(self, *arguments):
        return self.filled().empty_cache(*arguments)


class Stubborn(nn.Module):
    """What does in evaluation as it does in training, or has integers."""

    kind: str
    num_outputs: int | None = None

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        if self.kind == "integers":
            self.variable("counters", "calls", jnp.zeros, (), jnp.int32)
        elif self.kind == "statistics":
            x = nn.BatchNorm(use_running_average=False)(x)
        else:
            x = nn.Dropout(0.5, deterministic=False)(x)
        return nn.Dense(self.num_outputs)(x)


def networks_of(cfg):
    return [f.name for f in values.options(cfg) if isinstance(getattr(cfg, f.name), nn.Module)]


@functools.cache
def case_of(name):
    """A family's small Config with BatchNorm and Dropout before each of its networks."""
    case = make_case(name)
    changed = {each: Around(getattr(case.cfg, each)) for each in networks_of(case.cfg)}
    return case.family, dataclasses.replace(case.cfg, **changed), case.batch, case.dataset


WITH_NETWORKS = [name for name in sorted(FAMILIES) if networks_of(FAMILIES[name].Config())]
TRAINED = [name for name in WITH_NETWORKS if name.rpartition(".")[2] not in FLOWS]


SHARED = ("pixelcnn", "pixelcnn_pp", "pixelrnn", "wavenet", "glow", "tarflow", "realnvp_images")
"""Families whose step, or whose application of networks, is another's."""


def slow_if(slow, names):
    return [pytest.param(name, marks=pytest.mark.slow) if slow(name) else name for name in names]


def is_shared(name):
    return name.rpartition(".")[2] in SHARED


def stats_of(state):
    """The running means and variances of a State."""
    found = jax.tree_util.tree_leaves_with_path((state.params, getattr(state, "stats", ())))
    return [leaf for path, leaf in found if "batch_stats" in jax.tree_util.keystr(path)]


def test_the_walk_finds_the_families():
    assert {"jaxgen.autoencoder.vae", "jaxgen.gan.gan", "jaxgen.diffusion.edm"} <= set(TRAINED)
    assert {"jaxgen.energy.ebm", "jaxgen.autoregressive.made"} <= set(TRAINED)


@pytest.mark.parametrize("name", slow_if(is_shared, TRAINED))
def test_every_family_takes_statistics_and_dropout(name):
    """Traced: init, a step that keeps all shapes, and samples."""
    family, cfg, batch, _ = case_of(name)
    state = jax.eval_shape(lambda: family.init(KEY, cfg, batch))
    assert len(stats_of(state)) == 2 * len(networks_of(cfg))
    after, _ = jax.eval_shape(lambda state: family.train_step(state, batch, cfg), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert jax.eval_shape(lambda state: family.sample(KEY, state, 2, cfg), state).shape == (2, *cfg.shape)


@pytest.mark.parametrize("name", slow_if(is_shared, sorted(set(WITH_NETWORKS) - set(TRAINED))))
def test_flows_refuse_statistics_in_a_line(name):
    family, cfg, *_ = case_of(name)
    with pytest.raises(
        ValueError, match=r"the network Around needs batch_stats, .* take LayerNorm"
    ) as raised:
        jax.eval_shape(lambda: family.init(KEY, cfg))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name",
    slow_if(lambda name: not name.endswith(".vae"), [name for name in TRAINED if not is_shared(name)]),
)
def test_statistics_move_in_training_and_are_used_in_evaluation(name):
    family, cfg, batch, _ = case_of(name)
    state = jax.jit(functools.partial(family.init, cfg=cfg))(KEY, batch=batch)
    after, _ = jax.jit(functools.partial(family.train_step, cfg=cfg))(state, batch)
    for old, new in zip(stats_of(state), stats_of(after), strict=True):
        assert np.isfinite(new).all()
        assert (old != new).any()
    x = observed(batch)[:4]
    for capability in ("encode", "reconstruct", "score", "log_prob"):
        if hasattr(family, capability):
            function = getattr(family, capability)
            evaluate = jax.jit(lambda x: function(after, x, cfg)[0])  # noqa: B023 - is returned from here
            others = x.at[1:].set(-x[1:])
            np.testing.assert_allclose(evaluate(x), evaluate(others), rtol=1e-5, atol=1e-5)
            return
    draw = jax.jit(lambda: family.sample(KEY, after, 3, cfg))
    np.testing.assert_array_equal(draw(), draw())


def test_statistics_are_moved_by_the_step_and_not_by_the_optimizer():
    train = data.load("digits")
    optimizer = values.Adam(0.1, weight_decay=0.5)
    cfg = ae.Config(shape=train.shape, num_latents=4, encoder=Hidden(), decoder=Hidden(), optimizer=optimizer)
    batch = jax.tree.map(jnp.asarray, dict(train[:32]))
    state = jax.jit(functools.partial(ae.init, cfg=cfg))(KEY, batch=batch)
    state, _ = jax.jit(functools.partial(ae.train_step, cfg=cfg))(state, batch)
    x = np.asarray(batch["image"]).reshape(32, -1)
    moved = state.params["encoder"].stats["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(moved["mean"], 0.01 * x.mean(0), atol=1e-6)  # the momentum of Linen is 0.99
    np.testing.assert_allclose(moved["var"], 0.99 + 0.01 * x.var(0), atol=1e-6)


def test_a_vae_with_batch_norm_and_dropout_trains_and_resumes(tmp_path):
    train, test = data.load("digits"), data.load("digits", "test")
    cfg = vae.Config(
        shape=train.shape, num_latents=4, encoder=Hidden(), decoder=Hidden(), likelihood=Gaussian(std=0.3)
    )
    options = {"batch_size": 64, "key": KEY, "sample_every": 0, "save_every": 0, "log_every": 20}
    rows = []
    straight = jaxgen.fit(
        vae, cfg, train, steps=120, on_log=lambda _, row, state: rows.append(row), **options
    )
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    jaxgen.fit(vae, cfg, train, steps=50, run_dir=tmp_path, **options)
    assert_same_bits(jaxgen.fit(vae, cfg, train, steps=120, run_dir=tmp_path, **options), straight)
    _, loaded_cfg, loaded = jaxgen.load(tmp_path)
    assert loaded_cfg == cfg
    assert_same_bits(loaded, straight)
    x = jnp.asarray(test[:8]["image"])
    codes = jax.jit(lambda x: vae.encode(straight, x, cfg))
    np.testing.assert_allclose(codes(x)[:2], codes(x.at[2:].set(0))[:2], atol=1e-6)


@pytest.mark.slow
def test_statistics_are_those_of_the_whole_batch_on_several_devices():
    """BatchNorm sees all of a batch that is split over devices, as on one."""
    train = data.load("digits")
    cfg = vae.Config(shape=train.shape, num_latents=4, encoder=Hidden(dropout=0.0), decoder=Hidden())
    options = {"batch_size": 64, "key": KEY, "sample_every": 0, "save_every": 0}
    one, *others = (
        jaxgen.fit(vae, cfg, train, steps=3, mesh=shard.mesh(data=count, fsdp=fsdp), **options)
        for count, fsdp in ((1, 1), (8, 1), (2, 4))
    )
    for other in others:
        assert_close(one, other, 1e-3)


@pytest.mark.parametrize(
    "name",
    slow_if(
        lambda name: not name.endswith((".vae", ".ddpm", ".made")),
        [name for name in TRAINED if hasattr(FAMILIES[name], "loss")],
    ),
)
def test_a_loss_applies_no_network_in_training_within_evaluation(name):
    family, cfg, batch, _ = case_of(name)
    state = jax.eval_shape(lambda: family.init(KEY, cfg, batch))
    with mock.patch.object(variables, "call", wraps=variables.call) as called, variables.evaluation():
        jax.eval_shape(lambda state: family.loss(state.params, batch, KEY, cfg)[0], state)
    assert called.call_args_list
    assert not any(call.kwargs["train"] for call in called.call_args_list)


def test_validation_of_a_batch_is_that_of_its_examples():
    """With BatchNorm and Dropout, which in training make every batch another one."""
    train = data.take(data.load("digits"), "few", slice(8))
    cfg = ae.Config(shape=train.shape, num_latents=4, encoder=Hidden(), decoder=Hidden())
    state = jax.jit(functools.partial(ae.init, cfg=cfg))(KEY)
    one, whole = (
        validation.measured(ae, cfg, train, size, KEY, shard.mesh(1))(state) for size in (1, len(train))
    )
    assert one == pytest.approx(whole, rel=1e-5)


def test_dropout_is_drawn_in_training_by_the_key_alone():
    cfg = ae.Config(num_latents=4, encoder=Hidden(dropout=0.5), decoder=Hidden(dropout=0.0))
    x = jax.random.uniform(KEY, (16, 8, 8, 1), minval=-1)
    state = ae.init(KEY, cfg)
    value = jax.jit(lambda key: ae.loss(state.params, {"image": x}, key, cfg)[0])
    assert value(jax.random.key(1)) == value(jax.random.key(1))
    assert value(jax.random.key(1)) != value(jax.random.key(2))


def test_other_random_numbers_are_drawn_too():
    class Jitter(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return x + jax.random.normal(self.make_rng("noise"), x.shape) if train else x

    x = jnp.zeros((3, 2))
    first, _ = variables.train(Jitter(), {}, jax.random.key(1), x)
    other, _ = variables.train(Jitter(), {}, jax.random.key(2), x)
    assert (first != other).all()
    np.testing.assert_array_equal(variables.apply(Jitter(), {}, x), x)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("integers", "has a collection 'counters' of other than floating-point numbers"),
        ("statistics", "changes its statistics in evaluation: let its __call__ take train=False"),
        ("dropout", "draws random numbers in evaluation: let its __call__ take train=False"),
    ],
)
def test_networks_that_do_not_know_evaluation_are_refused(kind, words):
    with pytest.raises(ValueError, match=f"^the network Stubborn {words}") as raised:
        jax.eval_shape(lambda: vae.init(KEY, vae.Config(encoder=Stubborn(kind))))
    assert "\n" not in str(raised.value)


class Dropping(nn.Module):
    num_outputs: int | None = None

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.num_outputs)(nn.Dropout(0.5, deterministic=not train)(x))


def test_flows_refuse_dropout_that_would_not_drop():
    with pytest.raises(ValueError, match="the network Dropping needs random numbers, as for Dropout"):
        jax.eval_shape(lambda: realnvp.init(KEY, realnvp.Config(shape=(2,), levels=0, network=Dropping())))
