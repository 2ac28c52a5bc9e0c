"""Boltzmann machines: train, evaluate by annealed importance sampling and picture one of them.

python experiments/boltzmann.py rbm
python experiments/boltzmann.py rbm --conditional
python experiments/boltzmann.py gaussian_rbm
python experiments/boltzmann.py dbn
python experiments/boltzmann.py dbm
"""

import jaxgen.interrupts  # first, see there

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxgen
from jaxgen import data, keys
from jaxgen.energy import ais, dbm, dbn, rbm
from jaxgen.energy.bipartite import Gaussian, Machine, flat
from jaxgen.energy.chains import ContrastiveDivergence, Persistent, from_biases
from jaxgen.evaluation import likelihood
from jaxgen.evaluation.metric import metric
from jaxgen.run import shard
from jaxgen.script import Options, System, main, pictures
from jaxgen.types import observed
from jaxgen.values import SGD, Cosine, Linear

NUM_CHAINS, NUM_TEMPERATURES, NUM_STEPS = 100, 10_000, 2000


def partition(key, params, machine, v):
    """log Z from below, as metrics too, with its error and the estimate from above, in nats.

    Annealing starts at the means of states v, or of their probabilities, of data.
    """
    start_key, draw_key, ais_key = keys.named(key, "first states", "draws of the model", "annealing")
    base = machine.base(params, v)
    start = from_biases(start_key, machine, params, NUM_CHAINS, base)
    draws = jax.jit(lambda key, params: machine.gibbs(key, params, start, NUM_STEPS))(draw_key, params)
    found = ais.bracket(ais_key, params, draws, machine, base=base, num_temperatures=NUM_TEMPERATURES)
    metrics = {
        "log_partition": metric(found.forward, "nats, low on average", NUM_CHAINS),
        "log_partition_error": metric(found.forward_error, "nats", NUM_CHAINS),
        "log_partition_reverse": metric(found.reverse, "nats, high on average", NUM_CHAINS),
        "log_partition_reverse_error": metric(found.reverse_error, "nats", NUM_CHAINS),
    }
    return found.forward, metrics


def save_pictures(key, family, state, test, cfg, folder, weight):
    """Reconstructions, the weights of hidden units, and samples of every class of a conditional model."""
    pictures.save_units(family, state, test, cfg, folder, weight)
    if len(cfg.shape) == 3 and getattr(cfg, "conditional", False):
        draw = lambda label: family.sample(key, state, len(label), cfg, label)
        pictures.save_classes(folder, draw, cfg.num_classes, test.label_names)


def accuracy(family, state, test, cfg):
    """How often the likeliest label is right."""
    classify = jax.jit(lambda x: family.classify(state, x, cfg).argmax(-1))
    right = [np.asarray(classify(observed(b)) == b["label"]) for b in data.in_order(test, 500)]
    return {"accuracy": metric(np.concatenate(right).mean(), "", len(test))}


def evaluate_rbm(key, state, train, test, cfg, folder):
    """The likelihood of test data by log Z from below, so that it is high on average; accuracy of labels."""
    data_key, z_key, picture_key, base_key = keys.named(key, "data", "log Z", "pictures", "base")
    save_pictures(picture_key, rbm, state, test, cfg, folder, state.params.weight[: cfg.num_dims])
    seen = train[:10_000]
    machine = rbm.machine(cfg)
    v = machine.joined(
        cfg.visible.units(base_key, flat(observed(seen))),
        jnp.asarray(seen["label"]) if cfg.conditional else None,
    )
    log_z, metrics = partition(z_key, state.params, machine, v)
    value = lambda key, x: rbm.log_unnormalized(state, x, cfg, key=key) - log_z
    metrics |= likelihood.reported(data_key, value, test, rbm.measure(cfg), "nll_ais")
    return metrics | (accuracy(rbm, state, test, cfg) if cfg.conditional else {})


def evaluate_dbn(key, state, train, test, cfg, folder):
    """The bound on the likelihood of test data by log Z of the top machine; accuracy of labels."""
    data_key, z_key, picture_key = keys.named(key, "data", "log Z", "pictures")
    save_pictures(picture_key, dbn, state, test, cfg, folder, state.params.generative[0].weight)
    seen = train[:10_000]
    h = dbn.machine(cfg).joined(
        dbn.encode(state, observed(seen), cfg), jnp.asarray(seen["label"]) if cfg.conditional else None
    )
    log_z, metrics = partition(z_key, state.params.top, dbn.machine(cfg), h)
    value = lambda key, x: dbn.unnormalized_elbo(key, state, x, cfg) - log_z
    metrics |= likelihood.reported(data_key, value, test, dbn.measure(cfg), "negative_elbo_ais")
    return metrics | (accuracy(dbn, state, test, cfg) if cfg.conditional else {})


def evaluate_dbm(key, state, train, test, cfg, folder):
    """The bound on the likelihood of test data by log Z of the machine of its odd and even layers."""
    data_key, z_key, picture_key = keys.named(key, "data", "log Z", "pictures")
    save_pictures(picture_key, dbm, state, test, cfg, folder, state.params.weights[0])
    odd, _ = dbm.mean_field(state.params, cfg.visible.inputs(flat(observed(train[:2000]))), cfg)
    log_z, metrics = partition(z_key, dbm.two_layers(state.params), Machine(), odd)
    value = lambda key, x: dbm.unnormalized_elbo(state, x, cfg, key=key) - log_z
    return metrics | likelihood.reported(data_key, value, test, dbm.measure(cfg), "negative_elbo_ais")


def greedy(train, cfg, options, layers, model):
    """Restricted machines trained one after the other, each on what hidden units make of the data below.

    Bits are drawn from the probabilities of hidden units afresh at every presentation. In a belief network a
    machine is initialised from that below, transposed.
    """
    machines, shape = [], cfg.shape
    for index, (layer, steps) in enumerate(layers):
        key = keys.named(jax.random.fold_in(jax.random.key(options.seed), index), "layers")
        top = index == len(layers) - 1
        layer = dataclasses.replace(layer, conditional=top and getattr(cfg, "conditional", False))
        layer = jaxgen.types.from_data(rbm, train, dataclasses.replace(layer, shape=shape))
        start = None
        if machines and model is dbn:
            start = rbm.init(key, layer)
            start = start._replace(params=dbn.transposed(machines[-1], start.params))
        state = jaxgen.fit(
            rbm,
            layer,
            train,
            steps=steps,
            batch_size=options.batch_size,
            key=key,
            start=start,
            run_dir=options.run_dir / f"layer_{index}",
            mesh=shard.mesh(fsdp=options.fsdp),
            chunk=options.chunk,
            sample_every=0,
            save_every=0,
        )
        machines.append(state.params)
        encode = jax.jit(lambda x, state=state, layer=layer: 2 * rbm.encode(state, x, layer) - 1)
        if not top:
            x = np.concatenate([np.asarray(encode(observed(b))) for b in data.in_order(train, 500)])
            labels = {"label": train.arrays["label"]} if "label" in train.arrays else {}
            train = data.Dataset(train.name, train.split, {"x": x, **labels}, train.num_classes, levels=2)
            shape = train.shape
    return cfg, model.around(jax.random.key(options.seed), model.from_rbms(machines), cfg)


SALAKHUTDINOV = "Salakhutdinov & Murray 2008"
CD = ContrastiveDivergence(1)
PCD = Persistent(100, 5)


def machine(num_hidden, steps, chains, optimizer, **options):
    """One layer of a deep model, and the number of its steps; the learning rate falls to 0 over them."""
    optimizer = dataclasses.replace(optimizer, schedule=Linear(steps))
    return rbm.Config(num_hidden=num_hidden, chains=chains, optimizer=optimizer, **options), steps


# Learning rates are Hinton's and Salakhutdinov's orders of magnitude. After test results, and a probe on
# training data, the length of `rbm` was changed, and the lengths and the start of the top machine of `dbn`.
SYSTEMS = {
    "rbm": System(
        family=rbm,
        config=rbm.Config(
            num_hidden=500,
            chains=PCD,
            weight_decay=1e-5,
            optimizer=SGD(0.02, schedule=Linear(100_000), momentum=0.5),
        ),
        paper=SALAKHUTDINOV,
        options=Options(
            data="mnist",
            steps=100_000,
            batch_size=100,
            sample_every=100_000,
            save_every=20_000,
            num_samples=2000,
        ),
        evaluate=evaluate_rbm,
    ),
    "gaussian_rbm": System(
        family=rbm,
        config=rbm.Config(
            num_hidden=128,
            visible=Gaussian(0.5),
            chains=PCD,
            optimizer=SGD(2e-3, schedule=Linear(10_000), momentum=0.5),
        ),
        paper="Welling, Rosen-Zvi & Hinton 2005",
        options=Options(steps=10_000, batch_size=100, sample_every=10_000, save_every=5000),
        evaluate=evaluate_rbm,
    ),
    "dbn": System(
        family=dbn,
        config=dbn.Config(widths=(500, 2000), optimizer=SGD(1e-3, schedule=Cosine(5000))),
        paper="Hinton, Osindero & Teh 2006",
        options=Options(
            data="mnist", steps=5000, batch_size=100, sample_every=5000, save_every=2500, num_samples=1000
        ),
        before=functools.partial(
            greedy,
            layers=(
                machine(500, 70_000, PCD, SGD(0.02, momentum=0.5), weight_decay=1e-5),
                machine(2000, 10_000, PCD, SGD(0.02, momentum=0.5), weight_decay=1e-5),
            ),
            model=dbn,
        ),
        evaluate=evaluate_dbn,
    ),
    "dbm": System(
        family=dbm,
        config=dbm.Config(
            widths=(500, 1000),
            chains=PCD,
            most_turns=10,
            optimizer=SGD(0.01, schedule=Linear(40_000)),
        ),
        paper="Salakhutdinov & Hinton 2009",
        options=Options(
            data="mnist",
            steps=40_000,
            batch_size=100,
            sample_every=40_000,
            save_every=10_000,
            num_samples=1000,
        ),
        before=functools.partial(
            greedy,
            layers=(
                machine(500, 8000, CD, SGD(0.05, momentum=0.9), copies=(2, 1)),
                machine(1000, 5000, CD, SGD(0.05, momentum=0.9), copies=(1, 2)),
            ),
            model=dbm,
        ),
        evaluate=evaluate_dbm,
    ),
}

if __name__ == "__main__":
    main(SYSTEMS)
