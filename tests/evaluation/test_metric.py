import math

import pytest

from jaxgen.evaluation.metric import floor_text, metric, value_text


@pytest.mark.parametrize(
    ("value", "floor", "spread", "texts"),
    [
        (1.0834, 1.1312, 0.2134, ("1.08", "1.13 ± 0.21")),
        (12.3456, 0.5, 0.00123, ("12.35", "0.5000 ± 0.0012")),
        (1234.56, 1111.1, 210.0, ("1235", "1111 ± 210")),
        (0.000123456, 0.0, 0.00002, ("0.000123", "0.000000 ± 0.000020")),
        (0.98765, 0.9, None, ("0.9877", "0.9")),
        (0.98765, None, None, ("0.9877", "")),
        (math.inf, 1.0, 0.1, ("inf", "1.00 ± 0.10")),
    ],
)
def test_digits_below_the_spread_of_the_floor_are_not_shown(value, floor, spread, texts):
    found = metric(value, "", 10, floor, spread)
    assert (value_text(found), floor_text(found)) == texts


def test_results_without_a_spread_are_shown_as_before():
    assert value_text({"value": 1.08342}) == "1.083"
    assert floor_text({"floor": 1.2694}) == "1.269"
