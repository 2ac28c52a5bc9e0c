"""The loop: what it logs, what it keeps, and that nothing that interrupts it changes the result."""

import dataclasses
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgen
from jaxgen import data, plot, shard
from jaxgen.autoencoder import vae
from jaxgen.autoencoder.networks import DenseEncoder
from jaxgen.autoregressive import transformer
from jaxgen.belief import helmholtz
from jaxgen.classical import gmm
from jaxgen.classical.emissions import Symbols
from jaxgen.energy import rbm
from jaxgen.likelihoods import Bernoulli, Gaussian
from jaxgen.run import checkpoint, directory, dispatch
from tests import line

ROOT = Path(__file__).parents[2]
KEY = jax.random.key(0)
MESH = shard.mesh(1)


@pytest.fixture(scope="module")
def ring():
    return data.load("ring")


def fit(dataset, steps, cfg=None, **options):
    options = {
        "key": KEY,
        "batch_size": 16,
        "mesh": MESH,
        "sample_every": 0,
        "save_every": 0,
        **options,
    }
    return jaxgen.fit(line, cfg or line.Config(), dataset, steps=steps, **options)


@pytest.mark.slow
def test_log_lines_are_means_over_the_interval(ring, tmp_path):
    seen = []
    fit(ring, 25, run_dir=tmp_path, log_every=10, on_log=lambda step, m, _: seen.append((step, m["index"])))
    assert seen == [(10, 4.5), (20, 14.5), (25, 22.0)]
    rows = directory.read_metrics(tmp_path)
    assert [(row["step"], row["index"]) for row in rows] == seen
    assert all(row["steps_per_second"] > 0 for row in rows)


def test_where_dispatches_end_changes_no_bit(ring):
    results = [
        fit(ring, 24, **options).params
        for options in ({}, {"chunk": 1}, {"chunk": 7}, {"log_every": 5}, {"save_every": 3}, {"chunk": 24})
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_streamed_set_is_trained_on_and_resumed(ring, tmp_path):
    source = [{"x": x, "label": np.int32(0)} for x in ring.arrays["x"][:200]]
    streamed = data.StreamedDataset("streamed", "train", source, (2,), 8)
    straight = fit(streamed, 9, mesh=shard.mesh(8))
    fit(streamed, 4, run_dir=tmp_path, mesh=shard.mesh(8))
    resumed = fit(streamed, 9, run_dir=tmp_path, mesh=shard.mesh(8))
    np.testing.assert_array_equal(straight.params, resumed.params)
    np.testing.assert_allclose(straight.params, fit(streamed, 9).params, rtol=1e-5, atol=1e-6)


def test_run_directory_holds_what_it_should(ring, tmp_path):
    fit(ring, 20, run_dir=tmp_path / "new" / "run", log_every=10, sample_every=10, save_every=5)
    run_dir = tmp_path / "new" / "run"
    assert checkpoint.steps(run_dir) == [10, 15, 20]
    assert sorted(path.name for path in (run_dir / "samples").iterdir()) == ["10.png", "20.png"]
    description = directory.read_description(run_dir)
    assert description["family"] == "tests.line"
    assert description["data"] == "ring"
    assert description["versions"]["jax"] == jax.__version__


def test_a_finished_run_returns_at_once(ring, tmp_path):
    first = fit(ring, 10, run_dir=tmp_path)
    rows = directory.read_metrics(tmp_path)
    again = fit(ring, 10, run_dir=tmp_path)
    np.testing.assert_array_equal(first.params, again.params)
    assert directory.read_metrics(tmp_path) == rows


def test_load_then_sample_in_two_lines(ring, tmp_path):
    state = fit(ring, 10, run_dir=tmp_path, save_every=5)
    family, cfg, loaded = jaxgen.load(tmp_path)
    assert family.sample(KEY, loaded, 64, cfg).shape == (64, 2)
    np.testing.assert_array_equal(loaded.params, state.params)
    assert int(jaxgen.load(tmp_path, step=5)[2].step) == 5
    with pytest.raises(jaxgen.RunError, match="no checkpoint 6"):
        jaxgen.load(tmp_path, step=6)


def test_objects_of_ones_own_come_from_the_caller(ring, tmp_path):
    cfg = line.Config(transform=jnp.tanh)
    fit(ring, 3, cfg, run_dir=tmp_path)
    with pytest.raises(jaxgen.RunError, match="its own transform"):
        jaxgen.load(tmp_path)
    assert int(jaxgen.load(tmp_path, cfg=cfg)[2].step) == 3
    assert int(fit(ring, 4, cfg, run_dir=tmp_path).step) == 4


def test_a_run_starts_from_the_parameters_of_another(ring, tmp_path):
    first = fit(ring, 10)
    still = line.Config(learning_rate=0.0)
    state = fit(ring, 2, still, start=first, run_dir=tmp_path, save_every=1, mesh=shard.mesh(2))
    assert int(state.step) == 2
    np.testing.assert_array_equal(state.params, first.params)
    resumed = fit(ring, 3, still, start=fit(ring, 5), run_dir=tmp_path, mesh=shard.mesh(2))
    np.testing.assert_array_equal(resumed.params, first.params)
    with pytest.raises(ValueError, match="state of other shapes"):
        fit(ring, 1, start=line.init(KEY, line.Config(shape=(3,))))


@pytest.mark.parametrize("chunk", [None, 1])
def test_nan_stops_the_run_and_names_the_step(ring, tmp_path, chunk):
    cfg = line.Config(bad_step=17)
    with pytest.raises(FloatingPointError, match="loss became NaN or infinite at step 17"):
        fit(ring, 40, cfg, run_dir=tmp_path, save_every=5, chunk=chunk)
    assert checkpoint.steps(tmp_path) == [5, 10, 15]
    assert np.isfinite(jaxgen.load(tmp_path)[2].params).all()


def test_a_streamed_run_names_the_step_too(ring, tmp_path):
    streamed = data.StreamedDataset("streamed", "train", [{"x": x} for x in ring.arrays["x"][:50]], (2,))
    with pytest.raises(FloatingPointError, match="step 6"):
        fit(streamed, 20, line.Config(bad_step=6), log_every=10)


def test_a_state_with_nan_is_never_saved(ring, tmp_path):
    with pytest.raises(FloatingPointError, match="state holds NaN after step 10"):
        fit(ring, 10, line.Config(bad_state_step=9), run_dir=tmp_path, save_every=5)
    assert checkpoint.steps(tmp_path) == [5]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cfg": line.Config(learning_rate=0.1)}, "learning_rate is 0.05 there and 0.1 here"),
        ({"batch_size": 32}, "batch_size is 16 there and 32 here"),
        ({"key": jax.random.key(1)}, "key is"),
    ],
)
def test_another_run_is_refused(ring, tmp_path, change, named):
    fit(ring, 3, run_dir=tmp_path)
    with pytest.raises(jaxgen.RunError, match=named):
        fit(ring, 6, run_dir=tmp_path, **change)
    assert checkpoint.steps(tmp_path) == [3]


def test_another_family_is_refused(ring, tmp_path):
    fit(ring, 3, run_dir=tmp_path)
    cfg = vae.Config(shape=(2,), encoder=DenseEncoder((4,)), likelihood=Gaussian())
    with pytest.raises(jaxgen.RunError, match=r"family is tests\.line there"):
        jaxgen.fit(vae, cfg, ring, steps=6, batch_size=16, key=KEY, run_dir=tmp_path)


def test_an_unwritable_run_directory_is_one_line(ring, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(jaxgen.RunError, match="cannot write to the run directory"):
        fit(ring, 3, run_dir=tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": 0}, r"key must be a typed key such as jax.random.key\(0\), not 0"),
        ({"key": np.zeros(2, np.uint32)}, r"key must be a typed key .*, not ndarray uint32 \(2,\)"),
        ({"dataset": np.zeros((4, 2))}, r"of type ndarray: arrays are one as data.Dataset\("),
        ({"cfg": gmm.Config()}, r"cfg must be a Config of tests.line, not jaxgen.classical.gmm.Config"),
        ({"cfg": line.Config(shape=(3,))}, r"must be of shape \(B, 3\), not \(2000, 2\)"),
        ({"cfg": line.Config(learning_rate="fast")}, r"learning_rate must be a number, not 'fast'"),
    ],
)
def test_wrong_arguments_are_named_before_the_first_step(ring, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fit(**{"dataset": ring, "steps": 3, "run_dir": tmp_path / "run", **options})
    with pytest.raises(ValueError, match="a family is a module"):
        jaxgen.fit("vae", line.Config(), ring, steps=1, batch_size=8, key=KEY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "cfg"),
    [(vae, vae.Config(shape=(2,), likelihood=Bernoulli())), (rbm, rbm.Config(shape=(2,)))],
    ids=["vae", "rbm"],
)
def test_bits_of_numbers_that_are_none_are_refused(family, cfg):
    wide = data.Dataset("table", "train", {"x": np.linspace(-3, 2, 64, dtype=np.float32).reshape(32, 2)})
    message = r"(Bernoulli|Bits) is of bits in \[-1, 1\].* from -3 to 2: take another .*Gaussian"
    with pytest.raises(ValueError, match=message):
        jaxgen.fit(family, cfg, wide, steps=1, batch_size=8, key=KEY)


@pytest.mark.parametrize(
    ("family", "array", "remedy"),
    [
        (helmholtz, {"x": np.linspace(-3, 2, 64, dtype=np.float32).reshape(32, 2)}, "2: scale the data"),
        (transformer, {"tokens": np.arange(64).reshape(32, 2)}, r"63: take .* such as Symbols\(\), or"),
    ],
    ids=["helmholtz", "transformer"],
)
def test_the_remedy_is_one_that_the_family_has(family, array, remedy):
    with pytest.raises(ValueError, match=remedy):
        jaxgen.fit(
            family,
            family.Config(shape=(2,)),
            data.Dataset("mine", "train", array),
            steps=1,
            batch_size=8,
            key=KEY,
        )


def test_a_batch_that_does_not_split_is_refused(ring):
    with pytest.raises(ValueError, match="batch size 12 cannot be split over 8 devices; use 8 or 16"):
        fit(ring, 3, mesh=shard.mesh(), batch_size=12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": 2.5}, "steps must be an integer, not 2.5"),
        ({"batch_size": -8}, "batch_size must be at least 1, not -8"),
        ({"chunk": 0}, "chunk must be at least 1, not 0"),
        ({"log_every": 0}, "log_every must be at least 1, not 0"),
        ({"sample_every": -5}, "sample_every must be at least 0, not -5"),
        ({"save_every": -1}, "save_every must be at least 0, not -1"),
    ],
)
def test_numbers_out_of_range_are_refused(ring, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        fit(ring, **{"steps": 3, **options})


def damage_truncate(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def damage_every_file(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def damage_remove_manifest(folder):
    (folder / "state" / "manifest.ocdbt").unlink()


@pytest.mark.parametrize("damage", [damage_truncate, damage_every_file, damage_remove_manifest])
def test_a_damaged_checkpoint_falls_back_to_the_last_whole_one(ring, tmp_path, damage):
    fit(ring, 15, run_dir=tmp_path, save_every=5)
    damage(tmp_path / "checkpoints" / "15")
    with pytest.warns(UserWarning, match=r"checkpoint 15 of .* is damaged: falling back"):
        resumed = fit(ring, 18, run_dir=tmp_path, save_every=5)
    np.testing.assert_array_equal(resumed.params, fit(ring, 18).params)
    assert checkpoint.steps(tmp_path) == [10, 15, 18]
    assert (tmp_path / "damaged" / "15").is_dir()
    assert [row["step"] for row in directory.read_metrics(tmp_path)] == [18]


def test_reads_that_outlive_a_failed_one_are_muted_and_nothing_else(ring, tmp_path, monkeypatch):
    """Orbax leaves some now and then; what is done here is what one does, in a callback on a closed loop."""
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: printed.append(raised.exc_value))
    checkpoint._mute_what_is_left_behind.cache_clear()
    fit(ring, 10, run_dir=tmp_path, save_every=5)
    damage_remove_manifest(tmp_path / "checkpoints" / "10")
    with pytest.warns(UserWarning, match="checkpoint 10"):
        jaxgen.load(tmp_path)
    printed.clear()
    for error in (RuntimeError("Event loop is closed"), RuntimeError("another")):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    checkpoint._mute_what_is_left_behind.cache_clear()
    assert [str(error) for error in printed] == ["another"]


def test_with_no_whole_checkpoint_nothing_is_overwritten(ring, tmp_path):
    fit(ring, 5, run_dir=tmp_path)
    damage_every_file(tmp_path / "checkpoints" / "5")
    with (
        pytest.warns(UserWarning, match="checkpoint 5"),
        pytest.raises(jaxgen.RunError, match=r"no checkpoint of .* is whole"),
    ):
        fit(ring, 8, run_dir=tmp_path)
    assert checkpoint.steps(tmp_path) == [5]


@pytest.mark.parametrize("name", ["sweep [v1]", "back\\slash", "a**b", "what?"])
def test_a_path_that_checkpoints_cannot_be_under_is_refused_before_the_first_step(ring, tmp_path, name):
    with pytest.raises(jaxgen.RunError, match=r"checkpoints cannot be kept in .*: choose a path without"):
        fit(ring, 3, run_dir=tmp_path / name / "run")
    assert not (tmp_path / name).exists()


def test_a_run_that_was_moved_is_loaded_or_refused(ring, tmp_path):
    fit(ring, 3, run_dir=tmp_path / "run")
    assert int(jaxgen.load((tmp_path / "run").rename(tmp_path / "run [v1]"))[2].step) == 3
    with pytest.raises(jaxgen.RunError, match="choose a path without"):
        jaxgen.load((tmp_path / "run [v1]").rename(tmp_path / "a**b"))


class OtherState(NamedTuple):
    step: jax.Array
    key: jax.Array
    params: jax.Array
    momentum: jax.Array


def other_version(key, cfg, batch=None):
    return OtherState(*START(key, cfg), jnp.zeros(cfg.shape))


def other_type(key, cfg, batch=None):
    state = START(key, cfg)
    return state._replace(params=state.params.astype(jnp.bfloat16))


START = line.init


@pytest.mark.parametrize(
    ("init", "cfg", "named"),
    [
        (START, line.Config(shape=(3,)), r"params is float32 \(2,\) there and float32 \(3,\) here"),
        (other_version, None, r"momentum is absent there and float32 \(2,\) here"),
        (other_type, None, r"params is float32 \(2,\) there and bfloat16 \(2,\) here"),
    ],
)
def test_a_checkpoint_of_another_config_or_version_is_not_called_damaged(
    ring, tmp_path, monkeypatch, init, cfg, named
):
    fit(ring, 6, run_dir=tmp_path, save_every=3)
    monkeypatch.setattr(line, "init", init)
    with pytest.raises(jaxgen.RunError, match=f"checkpoint 6 of .* is of another config or version.*{named}"):
        jaxgen.load(tmp_path, cfg=cfg)
    if cfg is None:
        with pytest.raises(jaxgen.RunError, match=named):
            fit(ring, 9, run_dir=tmp_path)
    assert checkpoint.steps(tmp_path) == [3, 6]
    assert not (tmp_path / "damaged").exists()


def test_a_config_of_another_family_is_refused(ring, tmp_path):
    fit(ring, 3, run_dir=tmp_path)
    with pytest.raises(jaxgen.RunError, match=r"family tests\.line: cfg must be its Config, not dict"):
        jaxgen.load(tmp_path, cfg={})


def test_a_checkpoint_without_access_or_memory_is_not_called_damaged(ring, tmp_path, monkeypatch):
    import orbax.checkpoint.experimental.v1 as ocp

    fit(ring, 3, run_dir=tmp_path)
    for error in (PermissionError(13, "Permission denied"), RuntimeError("RESOURCE_EXHAUSTED: 1 TiB\nmore")):
        monkeypatch.setattr(ocp, "load", functools.partial(_raise, error))
        with pytest.raises(jaxgen.RunError, match=r"3 cannot be read: .*(denied|1 TiB)") as raised:
            fit(ring, 6, run_dir=tmp_path)
        assert "\n" not in str(raised.value)
    assert checkpoint.steps(tmp_path) == [3]


def _raise(error, *_):
    raise error


def test_numpy_numbers_in_a_config_are_loaded_and_resumed(ring, tmp_path):
    cfg = line.Config(shape=(np.int64(2),), learning_rate=np.float32(0.05), bad_step=np.int16(-1))
    fit(ring, 3, cfg, run_dir=tmp_path)
    loaded = jaxgen.load(tmp_path)[1]
    assert loaded == cfg
    assert type(loaded.learning_rate) is float
    assert int(fit(ring, 3, cfg, run_dir=tmp_path).step) == 3


@dataclasses.dataclass(frozen=True)
class ByCounting:
    """No optimizer, and a part with an option that steadies it."""

    parts: tuple = (Symbols(),)
    regularization: float = 0.0


def test_advice_after_nan_fits_the_family():
    assert dispatch.advice(vae.Config()) == dispatch.advice(line.Config()) == "try a smaller step size"
    totals = dispatch.Totals({"nll": jnp.float32(jnp.nan)}, jnp.int32(3))
    wanted = "step 3: look for extreme or constant values in the data, or try a larger regularization or a"
    with pytest.raises(FloatingPointError, match=f"nll became NaN or infinite at {wanted} larger prior"):
        dispatch.check(totals, ByCounting())
    assert "or try a larger regularization" in dispatch.advice(gmm.Config())


def test_a_signal_between_two_steps_stops_the_run_where_it_is(ring, tmp_path, monkeypatch):
    """No step was taken since the last log line, of which metrics could be the mean."""
    save, sent = checkpoint.save, []

    def save_and_signal(*arguments):
        save(*arguments)
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "save", save_and_signal)
    with pytest.raises(SystemExit) as stopped:
        fit(ring, 40, run_dir=tmp_path, log_every=10, save_every=10)
    assert stopped.value.code == 143
    assert checkpoint.steps(tmp_path) == [10]
    assert [row["step"] for row in directory.read_metrics(tmp_path)] == [10]


DOUBLE = """
import jax
jax.config.update("jax_enable_x64", True)
import jaxgen
from jaxgen import data, plot, shard
from tests import line
state = jaxgen.fit(line, line.Config(), data.load("ring"), steps=6, batch_size=16, key=jax.random.key(0),
                   mesh=shard.mesh(1))
print(*state.params)
"""


@pytest.mark.slow
def test_double_precision_changes_neither_the_batches_nor_the_steps(ring):
    """A process of its own; the noise of a step has other bits."""
    done = subprocess.run([sys.executable, "-c", DOUBLE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose([float(x) for x in done.stdout.split()], fit(ring, 6).params, atol=0.05)


SLOW_RUN = """
import sys, time
import jax, jaxgen
from jaxgen import data, plot, shard
from tests import line
jaxgen.fit(line, line.Config(), data.load("ring"), steps=2000, batch_size=16, key=jax.random.key(0),
           mesh=shard.mesh(1), run_dir=sys.argv[1], sample_every=0, save_every=20, log_every=10, chunk=1,
           on_log=lambda *_: time.sleep(0.05))
"""


def start_and_signal(run_dir, number, at_step):
    command = [sys.executable, "-c", SLOW_RUN, str(run_dir)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and max(checkpoint.steps(run_dir), default=0) < at_step:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    return process.returncode, stderr


@pytest.fixture(scope="module")
def straight(ring):
    return fit(ring, 2000).params


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, None), (signal.SIGKILL, -9)]
)
def test_a_stopped_run_ends_with_the_bits_of_a_straight_one(ring, tmp_path, straight, number, status):
    returned, stderr = start_and_signal(tmp_path, number, at_step=40)
    assert status is None or returned == status, stderr
    assert returned != 0, stderr
    steps = checkpoint.steps(tmp_path)
    assert 40 <= steps[-1] < 2000
    if number != signal.SIGKILL:
        rows = directory.read_metrics(tmp_path)
        assert 0 <= steps[-1] - rows[-1]["step"] <= 10
    if number == signal.SIGINT:
        assert f"stopped after step {steps[-1]}, saved in {tmp_path}" in stderr
    np.testing.assert_array_equal(fit(ring, 2000, run_dir=tmp_path, log_every=10).params, straight)
    assert [row["step"] for row in directory.read_metrics(tmp_path)] == list(range(10, 2001, 10))


def test_signal_handlers_are_put_back(ring, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    fit(ring, 3, run_dir=tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_fit_works_outside_the_main_thread(ring, tmp_path):
    states = []
    thread = threading.Thread(target=lambda: states.append(fit(ring, 3, run_dir=tmp_path)))
    thread.start()
    thread.join()
    assert int(states[0].step) == 3


PROCESS = """
import sys
import jax
from jaxgen import shard
shard.initialize()
import numpy as np, jaxgen
from jaxgen import data
from tests import line
assert jax.process_count() == 2 and jax.device_count() == 2
ring = data.load("ring")
source = [{"x": x} for x in ring.arrays["x"][:200]]
streamed = data.StreamedDataset("streamed", "train", source, (2,))
for name, dataset in {"resident": ring, "streamed": streamed}.items():
    for steps in (6, 12):  # the second resumes the first
        state = jaxgen.fit(line, line.Config(), dataset, steps=steps, batch_size=16, key=jax.random.key(0),
                           run_dir=f"{sys.argv[1]}/{name}", log_every=5, sample_every=6)
    if jax.process_index() == 0:
        np.save(f"{sys.argv[1]}/{name}.npy", np.asarray(state.params))
"""


@pytest.mark.slow
def test_two_processes_equal_one(ring, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path)],
            cwd=ROOT,
            env={**environment, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    streamed = data.StreamedDataset("streamed", "train", [{"x": x} for x in ring.arrays["x"][:200]], (2,))
    for name, dataset in {"resident": ring, "streamed": streamed}.items():
        alone = fit(dataset, 12, mesh=shard.mesh(2)).params
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), alone, rtol=1e-6, atol=1e-7)
        assert [row["step"] for row in directory.read_metrics(tmp_path / name)] == [5, 6, 10, 12]


def test_a_run_directory_in_use_is_refused_until_its_holder_dies(ring, tmp_path):
    """Another process holds the lock, and is killed."""
    code = (
        "import sys, time; from pathlib import Path; from jaxgen.run import directory\n"
        "with directory.lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(jaxgen.RunError, match=rf"is in use by process {other.pid} on .*: stop it, or"):
            fit(ring, 1, run_dir=tmp_path)
        assert not checkpoint.steps(tmp_path)
        other.kill()
    fit(ring, 1, run_dir=tmp_path)
    assert checkpoint.steps(tmp_path) == [1]


def test_a_run_that_went_further_is_refused(ring, tmp_path):
    fit(ring, 3, run_dir=tmp_path)
    with pytest.raises(jaxgen.RunError, match="has reached step 3: choose as many steps or more, not 2"):
        fit(ring, 2, run_dir=tmp_path)


def test_optimizers_that_look_alike_are_told_apart(ring, tmp_path):
    cfg = vae.Config(shape=(2,), encoder=DenseEncoder((4,)), likelihood=Gaussian(), optimizer=optax.sgd(0.1))
    options = {"batch_size": 16, "key": KEY, "mesh": MESH, "sample_every": 0, "run_dir": tmp_path}
    for steps in (1, 2):
        jaxgen.fit(vae, cfg, ring, steps=steps, **options)
    other = dataclasses.replace(cfg, optimizer=optax.sgd(0.5))
    with pytest.raises(jaxgen.RunError, match=r"holds another run .*program is"):
        jaxgen.fit(vae, other, ring, steps=3, **options)


@pytest.mark.parametrize("wrong", ["start", "batch"])
def test_a_refused_run_leaves_no_directory(ring, tmp_path, wrong):
    if wrong == "start":
        options = {"start": line.init(KEY, line.Config(shape=(3,)))}
    else:
        options = {"cfg": line.Config(transform=lambda: None), "dataset": data.load("digits")}
    with pytest.raises(ValueError):
        fit(**{"dataset": ring, "steps": 1, "run_dir": tmp_path / "run", **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"family": "tests.line"}', '{"family": []}'])
def test_a_description_of_something_else_is_one_line(ring, tmp_path, text):
    fit(ring, 1, run_dir=tmp_path)
    (tmp_path / "config.json").write_text(text)
    for use in (jaxgen.load, lambda run_dir: fit(ring, 2, run_dir=run_dir)):
        with pytest.raises(jaxgen.RunError, match="is not the description of a run: it has no"):
            use(tmp_path)


def test_a_picture_that_cannot_be_drawn_costs_no_checkpoint(ring, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plot, "save_samples", fail)
    with pytest.warns(UserWarning, match=r"samples of step \d cannot be drawn: .*No space left"):
        fit(ring, 6, run_dir=tmp_path, sample_every=4, save_every=2)
    assert checkpoint.steps(tmp_path) == [2, 4, 6]


def test_a_log_line_that_cannot_be_written_costs_no_checkpoint(ring, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory, "log", fail)
    with pytest.warns(UserWarning, match="the log line of step 4 cannot be written: .*No space left"):
        fit(ring, 4, run_dir=tmp_path, log_every=4)
    assert checkpoint.steps(tmp_path) == [4]


def test_a_callback_that_fails_ends_the_run_after_it_is_saved(ring, tmp_path):
    def fail(step, metrics, state):
        if step == 6:
            raise RuntimeError("the logger is gone")

    with pytest.raises(RuntimeError, match="the logger is gone"):
        fit(ring, 20, run_dir=tmp_path, log_every=3, on_log=fail)
    assert checkpoint.steps(tmp_path) == [6]
    resumed = fit(ring, 20, run_dir=tmp_path, log_every=3)
    np.testing.assert_array_equal(resumed.params, fit(ring, 20).params)


def test_samples_that_cannot_be_had_are_refused_before_the_first_step(ring, tmp_path, monkeypatch):
    def sample(key, state, n, cfg):
        raise ValueError("there is nothing to sample")

    monkeypatch.setattr(line, "sample", sample)
    with pytest.raises(ValueError, match="nothing to sample"):
        fit(ring, 2, run_dir=tmp_path / "run", sample_every=1)
    assert not (tmp_path / "run").exists()
