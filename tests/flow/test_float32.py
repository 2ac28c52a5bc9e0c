"""Every flow inverts itself in float32, to 1e-5 over points near and far."""

import dataclasses

import pytest

from jaxgen.flow import affine, maf, planar, realnvp, spline
from jaxgen.flow.transforms import Additive
from tests.flow import test_maf, test_planar, test_realnvp, test_spline
from tests.flow.check import assert_inverts, initial, wide
from tests.flow.test_spline import points

FLOWS = {
    "affine": affine.flow(affine.Config(shape=(3,), levels=0)),
    "planar": planar.flow(dataclasses.replace(test_planar.POINTS, shape=(3,))),
    "radial": planar.flow(dataclasses.replace(test_planar.POINTS, shape=(3,), layer=planar.Radial())),
    "nice": realnvp.flow(dataclasses.replace(test_realnvp.POINTS, transform=Additive())),
    "realnvp": realnvp.flow(test_realnvp.POINTS),
    "maf": maf.flow(test_maf.POINTS),
    "iaf": maf.flow(test_maf.IAF),
    **{name: spline.flow(cfg) for name, cfg in test_spline.LAYERS.items()},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_it_inverts(name):
    x = points(3) if name in test_spline.LAYERS else wide(3)
    assert_inverts(FLOWS[name], initial(FLOWS[name]), x)
