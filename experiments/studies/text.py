"""Letters by Markov chains of several orders: how well each predicts new text, and what it writes.

python experiments/studies/text.py
python experiments/studies/text.py --text BOOK.txt --orders 1 2 3

Without --text it reads Python's language reference, which every Python has as `pydoc_data.topics`.
"""

import dataclasses
import math
import re
import string
import time
from pathlib import Path

import jax
import numpy as np

from jaxgen import script
from jaxgen.classical import markov
from jaxgen.script import result

ALPHABET = " " + string.ascii_lowercase
PSEUDO_COUNTS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Fit a chain of each order, measure it on held-out paragraphs and let it write."""

    text: Path | None = None
    """Text file in UTF-8; by default Python's language reference."""
    orders: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Letters that the next one depends on."""
    length: int = 300
    """Letters each chain writes."""
    seed: int = 0
    """Of what is written."""
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
    facts = {
        "text": options.text.name if options.text else "pydoc_data.topics",
        "alphabet": ALPHABET,
        "letters": {name: len(text) for name, text in texts.items()},
        "seed": options.seed,
        "order_by_bic": min(rows, key=lambda row: row["bic"])["order"],
    }
    result.save(options.results / "text.json", {**facts, "rows": rows}, since)


if __name__ == "__main__":
    script.run_script(main, Options)
