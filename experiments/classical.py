"""Classical generative models: fit, evaluate and picture one of them.

python experiments/classical.py gmm
python experiments/classical.py gmm --data fashion_mnist --num-components 100
python experiments/classical.py hmm
python experiments/classical.py gda --data mnist --steps 60 --batch-size 1000
python experiments/classical.py naive_bayes --columns bernoulli
python experiments/classical.py lda
python experiments/classical.py markov
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import functools

import jax
import numpy as np
import scipy.sparse

from jaxgen import plot
from jaxgen.classical import documents, gda, gmm, hmm, lda, markov, naive_bayes, plsa, ppca
from jaxgen.classical.columns import Gaussian
from jaxgen.evaluation import likelihood
from jaxgen.evaluation.metric import metric
from jaxgen.script import Options, System, likelihoods, main, pictures
from jaxgen.types import observed
from jaxgen.values import Adam, Cosine


def evaluate_classifier(key, state, train, test, cfg, folder, family):
    """Likelihood and accuracy on the test set; a picture of samples of every class."""
    accuracy = likelihood.per_example(key, lambda key, x: family.classify(state, x, cfg).argmax(1), test)
    accuracy = (accuracy == test[:]["label"]).mean()
    if len(cfg.shape) == 3:
        draw = lambda label: family.sample(key, state, len(label), cfg, label)
        pictures.save_classes(folder, draw, cfg.num_classes, test.label_names)
    metrics = {"accuracy": metric(accuracy, "of examples", len(test))}
    return metrics | likelihoods(key, family, state, test, cfg)


def evaluate_topics(key, state, train, test, cfg, folder, family):
    """Perplexity of half of each test document's words given the others; pictures of topics, if they are."""
    words = np.asarray(documents.counts_of(documents.of(observed(test[:]), cfg.shape, cfg.num_levels)))
    seen = np.random.RandomState(0).binomial(words.astype(int), 0.5)
    given, held_out = (documents.from_csr(scipy.sparse.csr_matrix(a)) for a in (seen, words - seen))
    perplexity = jax.jit(functools.partial(family.perplexity, cfg=cfg))(state, given, held_out=held_out)
    if len(cfg.shape) == 3:
        topics = state.params.topics.reshape(-1, *cfg.shape)
        topics = 2 * topics / topics.max((1, 2, 3), keepdims=True) - 1
        caption = "The probability of a grain of ink at every pixel, a picture for each topic."
        plot.save_grid(folder / "topics.png", topics, caption=caption)
        x = test[: pictures.NUM_EXAMPLES]["image"]
        pictures.save_reconstructions(folder, x, family.reconstruct(state, x, cfg))
    metrics = {"completion_perplexity": metric(perplexity, "words", len(test))}
    return metrics | likelihoods(key, family, state, test, cfg)


SYSTEMS = {
    "gda": System(
        family=gda,
        config=gda.Config(covariance="per_class", shrinkage=0.2),
        paper="Fisher 1936; Welch 1939; shrinkage of Friedman 1989",
        options=Options(steps=None, batch_size=719),  # two batches of digits
        evaluate=functools.partial(evaluate_classifier, family=gda),
    ),
    "naive_bayes": System(
        family=naive_bayes,
        config=naive_bayes.Config(columns=Gaussian(variance_smoothing=0.1)),
        paper="Maron 1961",
        options=Options(steps=None, batch_size=719),
        evaluate=functools.partial(evaluate_classifier, family=naive_bayes),
    ),
    "gmm": System(
        family=gmm,
        config=gmm.Config(num_components=30, regularization=1e-2),
        paper="Dempster, Laird & Rubin 1977; stepwise EM of Cappé & Moulines 2009",
        options=Options(steps=300, batch_size=1024, sample_every=100, save_every=100),
    ),
    # Of 5, 10, 20 and 30 latents, 30 have the highest likelihood of a fifth of the training digits held out.
    "ppca": System(
        family=ppca,
        config=ppca.Config(num_latents=30, optimizer=Adam(1e-2, schedule=Cosine(3000))),
        paper="Tipping & Bishop 1999",
        options=Options(steps=3000, batch_size=256),
    ),
    "hmm": System(
        family=hmm,
        config=hmm.Config(num_states=3),
        paper="Baum et al. 1970; stepwise EM of Cappé 2011",
        options=Options(data="weather", steps=500, sample_every=500),
    ),
    "plsa": System(
        family=plsa,
        config=plsa.Config(num_topics=20),
        paper="Hofmann 1999; stepwise EM of Cappé & Moulines 2009",
        options=Options(steps=500, sample_every=500),
        evaluate=functools.partial(evaluate_topics, family=plsa),
    ),
    "lda": System(
        family=lda,
        config=lda.Config(num_topics=20),
        paper="Blei, Ng & Jordan 2003; online variational Bayes of Hoffman, Blei & Bach 2010",
        options=Options(steps=500, sample_every=500),
        evaluate=functools.partial(evaluate_topics, family=lda),
    ),
    "markov": System(
        family=markov,
        config=markov.Config(),
        paper="Markov 1913",
        options=Options(data="weather", steps=None, batch_size=100, log_every=10),
    ),
}

if __name__ == "__main__":
    main(SYSTEMS)
