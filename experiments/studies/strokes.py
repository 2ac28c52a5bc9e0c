"""Pen strokes by hidden Markov models of angles: twos written by the model, and digits told apart.

python experiments/studies/strokes.py --strokes pendigits.npz

The file holds "points" (N, P, 2), pen positions along each trace with y upward, and "labels" (N,) digits: the
UCI set "Pen-Based Recognition of Handwritten Digits" (Alpaydin & Alimoglu 1998) as NumPy arrays. Its eight
positions are seven moves, fewer than the states, so each trace is first drawn as a cubic spline through its
positions and cut into moves of equal length. A move's angle, rounded to one of 16, is a symbol; the model
runs left to right, as in Bishop 2006, section 13.2. One more symbol ends every trace, the lifted pen, which
only a last state of its own emits: so what is written passes through all the states, in its own time.
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline

from jaxgen import plot, script
from jaxgen.classical import emissions, hmm
from jaxgen.fields import NonNegativeFloat, PositiveInt
from jaxgen.script import result

NUM_ANGLES = 16
LIFTED = NUM_ANGLES
"""The symbol after the last move."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Fit a model to the twos and let it write, then one to each digit and classify."""

    strokes: Path
    """npz file with "points" (N, P, 2) and "labels" (N,)."""
    num_states: PositiveInt = 16
    """Hidden states that write, from left to right."""
    num_moves: PositiveInt = 24
    """Moves of equal length that each trace is cut into."""
    num_steps: PositiveInt = 25
    """EM steps."""
    smoothing: NonNegativeFloat = 1e-3
    """Added to the probability of each angle in each state after the fit."""
    num_test: PositiveInt = 3498
    """Traces held out."""
    seed: int = 0
    """Of the split, the starts and what is written."""
    results: Path = Path("experiments/results/strokes")
    """Folder for strokes.json, twos.png and digits.png."""


def resample(points: np.ndarray, num_moves: int) -> np.ndarray:
    """The trace (P, 2) as (num_moves + 1, 2) positions at equal distances along a spline through it."""
    moved = np.r_[True, np.hypot(*np.diff(points, axis=0).T) > 0]
    points = points[moved].astype(float)
    along = np.r_[0.0, np.hypot(*np.diff(points, axis=0).T).cumsum()]
    fine = CubicSpline(along, points)(np.linspace(0, along[-1], 20 * num_moves + 1))
    length = np.r_[0.0, np.hypot(*np.diff(fine, axis=0).T).cumsum()]
    even = np.linspace(0, length[-1], num_moves + 1)
    return np.stack([np.interp(even, length, axis) for axis in fine.T], 1)


def angles(positions: np.ndarray) -> np.ndarray:
    """Symbols of the moves between positions (..., M + 1, 2), (..., M) int32: 0 is rightward, 4 upward."""
    dx, dy = np.moveaxis(np.diff(positions, axis=-2), -1, 0)
    return np.round(np.arctan2(dy, dx) / (2 * np.pi / NUM_ANGLES)).astype(np.int32) % NUM_ANGLES


def trace(symbols: np.ndarray) -> np.ndarray:
    """Positions (..., M + 1, 2) that moves of length 1 at these angles (..., M) lead to, from the origin."""
    turn = symbols * (2 * np.pi / NUM_ANGLES)
    moves = np.stack([np.cos(turn), np.sin(turn)], -1)
    return np.concatenate([np.zeros_like(moves[..., :1, :]), moves.cumsum(-2)], -2)


def starts(key: jax.Array, num_classes: int, cfg: hmm.Config) -> hmm.Params:
    """Random models, one for each class; only the last state lifts the pen, and it does nothing else."""
    params = jax.vmap(lambda key: hmm.init(key, cfg).params)(jax.random.split(key, num_classes))
    writing = params.emission.at[:, :, LIFTED].set(0.0).at[:, -1].set(jax.nn.one_hot(LIFTED, LIFTED + 1))
    return params._replace(emission=writing / writing.sum(-1, keepdims=True))


def fit_classes(key: jax.Array, x: np.ndarray, labels: np.ndarray, num_classes: int, cfg: hmm.Config):
    """A State of models, one for each class: classes are filled up to one size with empty sequences."""
    by_class = [x[labels == label] for label in range(num_classes)]
    size = max(map(len, by_class))
    padded = np.stack([np.pad(part, ((0, size - len(part)), (0, 0))) for part in by_class])
    real = np.stack([np.arange(size) < len(part) for part in by_class])
    mask = jnp.asarray(np.broadcast_to(real[..., None], padded.shape))
    fit = jax.vmap(lambda x, mask, params: hmm.fit(x, cfg, mask, params))
    return fit(jnp.asarray(padded), mask, starts(key, num_classes, cfg))


def smoothed(models: hmm.State, smoothing: float) -> hmm.State:
    """The models with no angle impossible in any state that writes."""
    emission = models.params.emission
    emission = emission.at[:, :-1, :LIFTED].add(smoothing)
    emission = emission / emission.sum(-1, keepdims=True)
    return models._replace(params=models.params._replace(emission=emission))


def written_moves(symbols: np.ndarray) -> np.ndarray:
    """What comes before the pen is lifted."""
    return symbols[: (np.append(symbols, LIFTED) == LIFTED).argmax()]


def naive_bayes(x: np.ndarray, labels: np.ndarray, test: np.ndarray, num_classes: int) -> np.ndarray:
    """log p(x | class) of the test, (N, classes), were the angle at each place independent of the others."""
    counts = np.stack([(x[labels == c][..., None] == range(NUM_ANGLES)).sum(0) for c in range(num_classes)])
    log_p = np.log((counts + 0.1) / (counts + 0.1).sum(-1, keepdims=True))
    return log_p[:, np.arange(x.shape[1]), test].sum(-1).T


def save_traces(path: Path, rows: dict[str, list[np.ndarray]]) -> None:
    """Rows of traces (positions, 2) with their names; a dot where the pen is set down."""
    panels = []
    for name, traces in rows.items():
        for index, positions in enumerate(traces):
            middle, half = positions.min(0) / 2 + positions.max(0) / 2, 0.6 * np.ptp(positions, axis=0).max()
            panels.append(
                plot.Panel(
                    [plot.Curve(*positions.T, style="k-"), plot.Curve(*positions[0], style="C3o")],
                    y_label="" if index else name,
                    limits=tuple((float(at - half), float(at + half)) for at in middle),
                    frame=False,
                )
            )
    plot.save_panels(path, panels, columns=len(next(iter(rows.values()))), size=(1.0, 1.15))


def main(options: Options) -> None:
    """Print the numbers, and write them as JSON with pictures of what the models write."""
    since = time.perf_counter()
    with np.load(options.strokes) as arrays:
        if not {"points", "labels"} <= set(arrays):
            raise ValueError(f"{options.strokes} must hold 'points' and 'labels', not {sorted(arrays)}")
        points, labels = arrays["points"], arrays["labels"].astype(int)
    if not 0 < options.num_test < len(points):
        raise ValueError(f"--num-test must leave some of the {len(points)} traces to train on")
    order = np.random.default_rng(options.seed).permutation(len(points))
    positions = np.stack([resample(row, options.num_moves) for row in points[order]])
    x, labels = angles(positions), labels[order]
    test, train = slice(options.num_test), slice(options.num_test, None)
    num_classes = labels.max() + 1
    cfg = hmm.Config(
        shape=(options.num_moves + 1,),
        num_states=options.num_states + 1,
        emission=emissions.Symbols(NUM_ANGLES + 1),
        left_to_right=True,
        max_steps=options.num_steps,
        tolerance=0.0,
    )
    key = jax.random.key(options.seed)
    ended = np.pad(x, ((0, 0), (0, 1)), constant_values=LIFTED)
    models = smoothed(fit_classes(key, ended[train], labels[train], num_classes, cfg), options.smoothing)
    log_p = jax.vmap(lambda model: hmm.log_prob(model, jnp.asarray(ended[test]), cfg))(models)
    log_p = np.asarray(log_p, np.float64).T
    log_prior = np.log(np.bincount(labels[train]) / len(labels[train]))
    right = lambda log_p: (log_p + log_prior).argmax(1) == labels[test]
    independent = naive_bayes(x[train], labels[train], x[test], num_classes)
    own = log_p[np.arange(len(log_p)), labels[test]] / options.num_moves

    options.results.mkdir(parents=True, exist_ok=True)
    keys = jax.random.split(jax.random.fold_in(key, 1), num_classes)
    longer = dataclasses.replace(cfg, shape=(4 * options.num_moves,))
    symbols = np.asarray(jax.vmap(lambda key, model: hmm.sample(key, model, 24, longer))(keys, models))
    written = [[trace(written_moves(row)) for row in drawn] for drawn in symbols]
    real = np.flatnonzero(labels == 2)[:12]
    save_traces(
        options.results / "twos.png",
        {
            "real": points[order][real],
            "16 angles": trace(x[real]),
            "written": written[2][:12],
            "written ": written[2][12:],
        },
    )
    save_traces(
        options.results / "digits.png", {f"row {row}": [drawn[row] for drawn in written] for row in range(6)}
    )
    facts = {
        "data": options.strokes.name,
        "traces": {"train": len(x) - options.num_test, "test": options.num_test},
        "states": options.num_states,
        "moves": options.num_moves,
        "angles": NUM_ANGLES,
        "em_steps": options.num_steps,
        "smoothing": options.smoothing,
        "seed": options.seed,
        "accuracy": float(right(log_p).mean()),
        "accuracy_of_naive_bayes_by_place": float(right(independent).mean()),
        "nats_per_angle": -float(own.mean()),
        "nats_per_angle_of_twos": -float(own[labels[test] == 2].mean()),
        "accuracy_by_digit": [
            round(float(right(log_p)[labels[test] == digit].mean()), 4) for digit in range(num_classes)
        ],
    }
    for name in ("accuracy", "accuracy_of_naive_bayes_by_place", "nats_per_angle", "nats_per_angle_of_twos"):
        print(f"{name} {facts[name]:.4f}")
    result.save(options.results / "strokes.json", facts, since)


if __name__ == "__main__":
    script.run_script(main, Options)
