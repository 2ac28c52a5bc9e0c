"""Belief networks: train, evaluate by bounds on the likelihood and picture one of them.

python experiments/belief.py sbn
python experiments/belief.py helmholtz
python experiments/belief.py rws
python experiments/belief.py nvil
python experiments/belief.py vimco
python experiments/belief.py predictability
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data, keys, plot
from jaxgen.belief import helmholtz, nvil, predictability, sigmoid_belief_net
from jaxgen.belief.helmholtz import Reweighted
from jaxgen.belief.nvil import VIMCO
from jaxgen.evaluation import likelihood
from jaxgen.evaluation.metric import metric
from jaxgen.script import Options, System, main, pictures
from jaxgen.types import observed
from jaxgen.values import SGD, Adam, Cosine

NUM_DRAWS, NUM_EXAMPLES, NUM_TEMPERATURES = 1000, 1000, 1000


def evaluate_recognised(family, generative):
    """Bounds on the likelihood of test data with one draw of q, and with many for the first examples."""

    def evaluate(key, state, train, test, cfg, folder):
        one_key, many_key = keys.named(key, "one draw", "many draws")
        pictures.save_units(family, state, test, cfg, folder, generative(state).layers[0].weight)
        one = lambda key, x: family.elbo(key, state, x, cfg)
        many = lambda key, x: family.iwae(key, state, x, cfg, NUM_DRAWS)
        measure = family.measure(cfg)
        return likelihood.reported(one_key, one, test, measure, "negative_elbo") | likelihood.reported(
            many_key,
            many,
            test,
            measure,
            f"negative_iwae_{NUM_DRAWS}",
            batch_size=100,
            num_examples=NUM_EXAMPLES,
        )

    return evaluate


def evaluate_sbn(key, state, train, test, cfg, folder):
    """A bound on the likelihood of the first test data, by annealing their hidden units."""
    pictures.save_units(sigmoid_belief_net, state, test, cfg, folder, state.params.layers[0].weight)
    value = lambda key, x: sigmoid_belief_net.elbo(key, state, x, cfg, NUM_TEMPERATURES)
    return likelihood.reported(
        key, value, test, sigmoid_belief_net.measure(cfg), "negative_elbo_ais", 200, NUM_EXAMPLES
    )


def evaluate_predictability(key, state, train, test, cfg, folder):
    """What units cut at 1/2 tell of each other, and what they keep of test data."""
    del key, train
    encode = jax.jit(lambda x: predictability.encode(state, x, cfg))
    y = jnp.concatenate([encode(observed(batch)) for batch in data.in_order(test, 500)])
    information = np.asarray(predictability.mutual_information(y))
    apart = information[np.triu_indices(len(information), 1)]
    decode = jax.jit(lambda y: predictability.decode(state, jnp.round(y), cfg))
    decoded = np.concatenate([np.asarray(decode(y[i : i + 500])) for i in range(0, len(y), 500)])
    x = np.asarray(observed(test[:]))
    if len(cfg.shape) == 3:
        pictures.save_reconstructions(folder, x, decoded)
        caption = "What is decoded of a code with one unit on and all others off, a picture for each unit."
        units = predictability.decode(state, jnp.eye(cfg.num_units), cfg)
        plot.save_grid(folder / "units.png", units, caption=caption)
    return {
        "information_of_pairs": metric(apart.mean(), "nats, bits cut at 1/2", len(y), 0.5 / len(y)),
        "most_information": metric(apart.max(), "nats, of the pairs", len(y)),
        "entropy_of_units": metric(np.diag(information).mean(), "nats, 0.693 at most", len(y)),
        "mse_of_bits": metric(((decoded - x) ** 2).mean(), "of pixels in [-1, 1]", len(y)),
    }


NET = evaluate_recognised(helmholtz, lambda state: state.params.generative)
SCORED = evaluate_recognised(nvil, lambda state: state.params.net.generative)


def mnist(steps, **options):
    """MNIST, whose bits are drawn from grey values at every presentation."""
    return Options(
        data="mnist",
        steps=steps,
        batch_size=100,
        sample_every=steps,
        save_every=steps // 4,
        num_samples=2000,
        **options,
    )


def adam(steps, learning_rate):
    """Adam to a learning rate of 0."""
    return Adam(learning_rate, schedule=Cosine(steps))


# Widths are the papers'. Nothing was tuned but the length of `nvil`, after a test result; `helmholtz` has it.
SYSTEMS = {
    "sbn": System(
        family=sigmoid_belief_net,
        config=sigmoid_belief_net.Config(
            widths=(32,), num_sweeps=10, optimizer=SGD(0.1, schedule=Cosine(6000), momentum=0.5)
        ),
        paper="Neal 1992",
        options=Options(steps=6000, batch_size=64, sample_every=6000, save_every=3000),
        evaluate=evaluate_sbn,
    ),
    "helmholtz": System(
        family=helmholtz,
        config=helmholtz.Config(widths=(200, 200), optimizer=adam(250_000, 1e-3)),
        paper="Hinton, Dayan, Frey & Neal 1995",
        options=mnist(250_000),
        evaluate=NET,
    ),
    "rws": System(
        family=helmholtz,
        config=helmholtz.Config(widths=(200, 200), objective=Reweighted(5), optimizer=adam(20_000, 1e-3)),
        paper="Bornschein & Bengio 2015",
        options=mnist(20_000),
        evaluate=NET,
    ),
    "nvil": System(
        family=nvil,
        config=nvil.Config(widths=(200, 200), optimizer=adam(250_000, 1e-3)),
        paper="Mnih & Gregor 2014",
        options=mnist(250_000),
        evaluate=SCORED,
    ),
    "vimco": System(
        family=nvil,
        config=nvil.Config(widths=(200, 200), estimator=VIMCO(5), optimizer=adam(20_000, 1e-3)),
        paper="Mnih & Rezende 2016",
        options=mnist(20_000),
        evaluate=SCORED,
    ),
    "predictability": System(
        family=predictability,
        config=predictability.Config(weight=2.0, optimizer=Adam(5e-4), predictor_optimizer=Adam(3e-3)),
        paper="Schmidhuber 1992",
        options=Options(steps=10_000, batch_size=128, sample_every=10_000, save_every=5000),
        evaluate=evaluate_predictability,
    ),
}

if __name__ == "__main__":
    main(SYSTEMS)
