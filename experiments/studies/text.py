"""Letters by Markov chains of several orders and a transformer: how well each predicts new text, and writes.

python experiments/studies/text.py
python experiments/studies/text.py --text BOOK.txt --orders 1 2 3

Without --text it reads Python's language reference, which every Python has as `pydoc_data.topics`.
"""

import jaxgen.interrupts  # first, see there

import dataclasses
import math
import re
import string
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxgen
from jaxgen import data, script
from jaxgen.autoregressive import sequential, transformer
from jaxgen.classical import markov
from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.likelihoods import Symbols
from jaxgen.script import result
from jaxgen.values import Adam, Cosine

ALPHABET = " " + string.ascii_lowercase
PSEUDO_COUNTS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
WINDOW = 128
"""Letters that the transformer is trained on at once."""
NUM_PARTS = 6
"""Times that the transformer is measured in training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Fit a chain of each order and a transformer, measure them on held-out paragraphs and let them write."""

    text: Path | None = None
    """Text file in UTF-8; by default Python's language reference."""
    orders: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Letters that the next one depends on."""
    steps: NonNegativeInt = 4000
    """Training steps of the transformer; 0 for none."""
    length: PositiveInt = 300
    """Letters each of them writes."""
    seed: int = 0
    """Of what is written, and of the transformer."""
    results: Path = Path("experiments/results/text")
    """Folder for the table, text.json."""


def paragraphs(options: Options) -> list[str]:
    """Those of the text in small letters and single spaces, each once: repeats would be known by heart."""
    if options.text:
        text = options.text.read_text()
    else:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics))
    plain = (" ".join(re.findall("[a-z]+", part.lower())) for part in re.split(r"\n\s*\n", text))
    return [part for part in dict.fromkeys(plain) if part]


def symbols(text: str) -> np.ndarray:
    """(1, T) int32, places in the alphabet."""
    places = np.zeros(128, np.int32)
    places[[ord(letter) for letter in ALPHABET]] = np.arange(len(ALPHABET))
    return places[np.frombuffer(text.encode(), np.uint8)][None]


def longest_copy(written: str, text: str) -> int:
    """Length of the longest run of letters in `written` that stands in `text` too."""
    longest = 0
    for start in range(len(written)):
        while start + longest < len(written) and written[start : start + longest + 1] in text:
            longest += 1
    return longest


def measure(options: Options, order: int, train: str, validation: str, test: str) -> dict[str, object]:
    """One order: pseudo-counts by the validation text, bits a letter of the test text, and a sample."""

    def bits(cfg, state, text):
        return -float(markov.log_prob(state, symbols(text), cfg)[0]) / len(text) / math.log(2)

    def chain(smoothing):
        cfg = markov.Config(
            shape=(options.length,),
            num_symbols=len(ALPHABET),
            order=order,
            smoothing=smoothing,
            backoff=smoothing > 0,
        )
        return cfg, markov.fit(symbols(train), cfg)

    candidates = (chain(smoothing) for smoothing in PSEUDO_COUNTS)
    cfg, state = min(candidates, key=lambda found: bits(*found, validation))
    likeliest_cfg, likeliest = chain(0.0)
    key = jax.random.key(options.seed)
    sample = jax.jit(lambda state: markov.sample(key, state, 1, cfg, prompt=symbols(" ")[0]))(state)
    written = "".join(ALPHABET[letter] for letter in np.asarray(sample[0]))
    return {
        "order": order,
        "bits_per_letter": round(bits(cfg, state, test), 4),
        "bits_per_letter_of_training": round(bits(likeliest_cfg, likeliest, train), 4),
        "bic": round(float(markov.bic(likeliest, symbols(train), likeliest_cfg))),
        "free_parameters": markov.num_free_parameters(cfg),
        "contexts_seen": int((np.asarray(state.params[-1]).sum(1) > 0).sum()),
        "pseudo_counts": cfg.smoothing,
        "longest_copied_run": longest_copy(written, train),
        "sample": written,
    }


def write(key, state, cfg, length: int) -> str:
    """Letters of the transformer, a window at a time: each goes on from the last half of the one before.

    Positions beyond a window are none that it was trained on.
    """
    half = WINDOW // 2
    go_on = jax.jit(lambda key, prefix: transformer.sample(key, state, 1, cfg, prefix=prefix)[0])
    letters = np.asarray(go_on(key, symbols(" ")))
    while len(letters) < length:
        key = jax.random.fold_in(key, len(letters))
        letters = np.concatenate([letters, np.asarray(go_on(key, letters[None, -half:]))[half:]])
    return "".join(ALPHABET[letter] for letter in letters[:length])


def measure_transformer(options: Options, train: str, validation: str, test: str) -> dict[str, object]:
    """The transformer after steps that the validation text chooses: bits of the test text, and a sample.

    It is trained on windows of the text. Of what it is measured on, every letter but those of the first
    window is given at least half a window of the letters before it.
    """
    windows = np.lib.stride_tricks.sliding_window_view(symbols(train)[0], WINDOW)[:: WINDOW // 8]
    dataset = data.Dataset("letters", "train", {"tokens": windows})
    cfg = transformer.Config(
        shape=(WINDOW,),
        likelihood=Symbols(len(ALPHABET)),
        network=transformer.Transformer(96, 3, 4, dropout=0.2),
        optimizer=Adam(2e-3, schedule=Cosine(options.steps, warmup_steps=options.steps // 20)),
    )

    @jax.jit
    def costs(state, tokens):
        """Bits of the letters of windows (N, WINDOW), by place."""
        x = sequential.likelihood(cfg).inputs(tokens[..., None])
        logits, _ = sequential.network(cfg).apply({"params": state.ema}, x)
        log_p = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0] / math.log(2)

    def bits(state, text):
        half = WINDOW // 2
        every = np.lib.stride_tricks.sliding_window_view(symbols(text)[0], WINDOW)[::half]
        found = [np.asarray(costs(state, part)) for part in np.array_split(every, len(every) // 32 + 1)]
        rows = np.concatenate(found)
        return float(np.concatenate([rows[0, :half], rows[:, half:].ravel()]).mean())

    best: tuple[float, int, object] = (math.inf, 0, None)
    state = None
    with tempfile.TemporaryDirectory() as folder:
        for part in range(1, NUM_PARTS + 1):
            steps = options.steps * part // NUM_PARTS
            state = jaxgen.fit(
                transformer,
                cfg,
                dataset,
                steps=steps,
                batch_size=32,
                key=jax.random.key(options.seed),
                run_dir=Path(folder),
                sample_every=0,
                save_every=0,
            )
            found = bits(state, validation)
            print(f"{steps} steps: {found:.4f} bits a letter of the validation text", flush=True)
            best = min(best, (found, steps, state), key=lambda row: row[0])
    _, steps, state = best
    written = write(jax.random.key(options.seed), state, cfg, options.length)
    return {
        "order": "transformer",
        "steps": steps,
        "bits_per_letter": round(bits(state, test), 4),
        "bits_per_letter_of_training": round(bits(state, train), 4),
        "free_parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "longest_copied_run": longest_copy(written, train),
        "sample": written,
    }


def main(options: Options) -> None:
    """Print a line and a sample for each order, and write them as JSON."""
    since = time.perf_counter()
    parts = paragraphs(options)
    splits = {"test": parts[9::10], "validation": parts[8::10]}
    splits["train"] = [part for index, part in enumerate(parts) if index % 10 < 8]
    texts = {name: " ".join(split) for name, split in splits.items()}
    if not texts["test"]:
        raise ValueError(f"{options.text} has {len(parts)} paragraphs: ten at least, parted by empty lines")
    rows = []
    for order in options.orders:
        rows.append(measure(options, order, **texts))
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    chains = len(rows)
    if options.steps:
        rows.append(measure_transformer(options, **texts))
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    facts = {
        "text": options.text.name if options.text else "pydoc_data.topics",
        "alphabet": ALPHABET,
        "letters": {name: len(text) for name, text in texts.items()},
        "seed": options.seed,
        "order_by_bic": min(rows[:chains], key=lambda row: row["bic"])["order"],
    }
    result.save(options.results / "text.json", {**facts, "rows": rows}, since)


if __name__ == "__main__":
    script.run_script(main, Options)
