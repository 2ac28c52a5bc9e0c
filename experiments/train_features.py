"""Train a small-cnn feature extractor and write its weights into the package.

python experiments/train_features.py digits --epochs 100 --shift 1
python experiments/train_features.py mnist --epochs 12
python experiments/train_features.py fashion_mnist --epochs 20 --flip

Every choice was made with --validate, which keeps a tenth of the training set aside (the last one then, the
split "validation" now), writes nothing and does not look at the test set.
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import dataclasses
import functools
import hashlib
import io
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import traverse_util

from jaxgen import data
from jaxgen.evaluation.features import small_cnn
from jaxgen.fields import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from jaxgen.script import one_line_errors

WEIGHTS = Path(small_cnn.__file__).parent / "weights"


@dataclasses.dataclass(frozen=True)
class Options:
    dataset: tyro.conf.Positional[Literal["digits", "mnist", "fashion_mnist"]]
    """Data set to train on."""
    epochs: PositiveInt = 12
    """Passes over the training set."""
    batch_size: PositiveInt = 128
    """Examples a step."""
    learning_rate: PositiveFloat = 2e-3
    """Adam's largest step size; it rises over the first epoch and falls along a half cosine."""
    weight_decay: NonNegativeFloat = 1e-2
    """Of AdamW."""
    shift: NonNegativeInt = 2
    """Pixels by which pictures are moved at most, in each direction."""
    flip: bool = False
    """Mirror half of the pictures."""
    seed: int = 0
    """Seed of the weights, the order of the data and the augmentation."""
    data_dir: Path | None = None
    """Where prepared data sets lie; by default TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    validate: bool = False
    """Keep a tenth of the training set aside and report the accuracy there; write nothing."""


def augment(key, images, options):
    """Each picture moved by up to `shift` pixels, background coming in, and perhaps mirrored."""
    move_key, flip_key = jax.random.split(key)
    side, shift = images.shape[1], options.shift
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), constant_values=-1.0)
    corners = jax.random.randint(move_key, (len(images), 2), 0, 2 * shift + 1)
    cut = lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (side, side, 1))
    images = jax.vmap(cut)(padded, corners)
    if options.flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def train(dataset, options):
    """Weights after `epochs` passes over `dataset`."""
    steps_per_epoch = math.ceil(len(dataset) / options.batch_size)
    steps = options.epochs * steps_per_epoch
    schedule = optax.warmup_cosine_decay_schedule(0.0, options.learning_rate, steps_per_epoch, steps)
    optimizer = optax.adamw(schedule, weight_decay=options.weight_decay)
    network = small_cnn.network(options.dataset)
    init_key, step_key = jax.random.split(jax.random.key(options.seed))

    def loss(params, images, labels):
        logits = network.apply({"params": params}, images)[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=1)
    def epoch(batches, state, index):
        def step(number, state):
            params, opt_state, total = state
            batch = batches(number)
            images = augment(jax.random.fold_in(step_key, number), batch["image"], options)
            value, grads = jax.value_and_grad(loss)(params, images, batch["label"])
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, total + value

        start = index * steps_per_epoch
        return jax.lax.fori_loop(start, start + steps_per_epoch, step, (*state, jnp.zeros(())))

    batches = data.batches(dataset, options.batch_size, options.seed)
    params = network.init(init_key, jnp.zeros((1, *dataset.shape)))["params"]
    state = params, optimizer.init(params)
    for index in range(options.epochs):
        *state, total = epoch(batches, tuple(state), index)
        print(f"epoch {index + 1}: loss {total / steps_per_epoch:.4f}", file=sys.stderr)
    return state[0]


def evaluate(params, dataset, options):
    """Features (N, 64), not standardised, and accuracy."""
    apply = jax.jit(functools.partial(small_cnn.apply, options.dataset))
    features, right = [], 0
    for batch in data.in_order(dataset, 500):
        found, logits = apply(params, batch["image"])
        features.append(np.asarray(found, np.float64))
        right += int((logits.argmax(-1) == batch["label"]).sum())
    return np.concatenate(features), right / len(dataset)


def main(options: Options) -> None:
    """Train, measure and write."""
    since = time.perf_counter()
    split = "train-validation" if options.validate else "train"
    dataset = data.load(options.dataset, split, options.data_dir)
    # Rounded to the precision they are kept in, so that what is measured is what is loaded.
    params = jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), train(dataset, options))
    features, train_accuracy = evaluate(params, dataset, options)
    held_out = data.load(options.dataset, "validation" if options.validate else "test", options.data_dir)
    accuracy = evaluate(params, held_out, options)[1]
    minutes = (time.perf_counter() - since) / 60
    print(f"accuracy: {train_accuracy:.4f} train, {accuracy:.4f} {held_out.split}; {minutes:.1f} minutes")
    mean, std = features.mean(0), features.std(0)
    if std.min() < 1e-3 * std.max():
        raise ValueError(f"{(std < 1e-3 * std.max()).sum()} features hardly vary over the training set")
    if not options.validate:
        write(params, mean, std, accuracy, options)


def write(params, mean, std, accuracy, options):
    """The file of weights, and the line to put into `small_cnn.SHA256`."""
    flat = traverse_util.flatten_dict({"params": params}, sep="/")
    arguments = [word for word in sys.argv[1:] if not word.startswith("--data-dir")]
    content = io.BytesIO()
    np.savez(
        content,
        **{key: np.asarray(array, np.float16) for key, array in flat.items()},
        mean=np.float32(mean),
        std=np.float32(std),
        test_accuracy=np.float64(accuracy),
        seed=options.seed,
        epochs=options.epochs,
        command=shlex.join(["python", "experiments/train_features.py", *arguments]),
        jax=jax.__version__,
    )
    path = WEIGHTS / f"small-cnn-{options.dataset}.npz"
    path.write_bytes(content.getvalue())
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    print(f'{path.name}, {len(content.getvalue())} bytes: SHA256["{options.dataset}"] = "{digest}"')


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Options, description=__doc__))
