"""Normalizing flows: train, evaluate and picture one of them.

python experiments/flow.py affine
python experiments/flow.py planar
python experiments/flow.py radial --data rings
python experiments/flow.py nice --data checkerboard
python experiments/flow.py realnvp
python experiments/flow.py maf --data ring
python experiments/flow.py iaf
python experiments/flow.py spline --data checkerboard
python experiments/flow.py spline_digits
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import plot
from jaxgen.flow import affine, maf, planar, realnvp, spline
from jaxgen.flow.transforms import Additive, RationalQuadratic
from jaxgen.nn.masked import MADE
from jaxgen.nn.mlp import MLP
from jaxgen.script import Options, System, likelihoods, main
from jaxgen.types import observed
from jaxgen.values import Adam, Cosine

GRID_SIDE = 300
NUM_SHOWN = 5000


def evaluate(key, state, train, test, cfg, folder, family):
    """The likelihood of the test set; pictures of the density and of the codes where the data are a plane.

    density.png: the true density, if it is known, and the model's. codes.png: test points, and where the flow
    takes them, which is to a Gaussian.
    """
    metrics = likelihoods(key, family, state, test, cfg)
    if cfg.shape == (2,):
        x = observed(test[:NUM_SHOWN])
        ticks = plane(observed(train[:NUM_SHOWN]))
        grid = np.stack(np.meshgrid(*ticks), -1).reshape(-1, 2)
        log_prob = jax.jit(lambda x: family.log_prob(state, x, cfg))
        maps = {"model": np.asarray(jnp.exp(log_prob(jnp.float32(grid))))}
        if test.log_density is not None:
            maps = {"data": np.exp(test.log_density(grid)), **maps}
        side = (len(ticks[1]), len(ticks[0]))
        plot.save_maps(folder / "density.png", {name: m.reshape(side) for name, m in maps.items()}, *ticks)
        codes = jax.jit(lambda x: family.encode(state, x, cfg))(x)
        plot.save_points(folder / "codes.png", {"data": x, "codes": codes})
    return metrics


def plane(x):
    """The places along both axes at which a density is drawn, from the extremes of points (N, 2)."""
    low, high = x.min(0), x.max(0)
    margin = 0.15 * (high - low).max()
    side = ((high - low) + 2 * margin).max()
    return [np.linspace(c - side / 2, c + side / 2, GRID_SIDE) for c in (low + high) / 2]


POINTS = Options(data="moons", steps=8000, batch_size=512, sample_every=4000, save_every=4000)


def optimizer(learning_rate):
    return Adam(learning_rate, schedule=Cosine(POINTS.steps), gradient_clip=10.0)


def system(family, config, paper):
    evaluation = functools.partial(evaluate, family=family)
    return System(family=family, config=config, paper=paper, options=POINTS, evaluate=evaluation)


REZENDE = "Rezende & Mohamed 2015"

SYSTEMS = {
    "affine": system(affine, affine.Config(optimizer=optimizer(1e-2)), "Cholesky 1924"),
    "planar": system(planar, planar.Config(optimizer=optimizer(5e-3)), REZENDE),
    "radial": system(planar, planar.Config(layer=planar.Radial(), optimizer=optimizer(5e-3)), REZENDE),
    "nice": system(
        realnvp,
        realnvp.Config(transform=Additive(), network=MLP((64, 64)), optimizer=optimizer(3e-3)),
        "Dinh, Krueger & Bengio 2015",
    ),
    "realnvp": system(
        realnvp,
        realnvp.Config(network=MLP((64, 64)), optimizer=optimizer(3e-3)),
        "Dinh, Sohl-Dickstein & Bengio 2017",
    ),
    "maf": system(
        maf,
        maf.Config(num_layers=8, network=MADE((64, 64)), optimizer=optimizer(3e-3)),
        "Papamakarios, Pavlakou & Murray 2017",
    ),
    "iaf": system(
        maf,
        maf.Config(num_layers=8, direct="sampling", network=MADE((64, 64)), optimizer=optimizer(3e-3)),
        "Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling 2016",
    ),
    "spline": system(
        spline,
        spline.Config(
            layer=spline.Coupling(MLP((64, 64))),
            transform=RationalQuadratic(16),
            optimizer=optimizer(3e-3),
        ),
        "Durkan, Bekasov, Murray & Papamakarios 2019",
    ),
}

if __name__ == "__main__":
    main(SYSTEMS)
