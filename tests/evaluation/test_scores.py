import numpy as np
import pytest

from jaxgen.evaluation.scores import classifier_score


def test_extremes():
    assert classifier_score(np.full((100, 5), 0.2)) == pytest.approx((1.0, 0.0))
    certain = np.eye(10)[np.arange(1000) % 10]
    assert classifier_score(certain) == pytest.approx((10.0, 0.0))
    assert classifier_score(np.eye(10)[np.zeros(50, int)]) == pytest.approx((1.0, 0.0))


def test_agrees_with_entropies():
    # exp(H(y) - H(y|x)), the mutual information of class and sample.
    p = np.random.default_rng(0).dirichlet(np.ones(4), 90)
    entropy = lambda q: -(q * np.log(q)).sum(-1)
    parts = [np.exp(entropy(part.mean(0)) - entropy(part).mean()) for part in p.reshape(3, 30, 4)]
    assert classifier_score(p, splits=3) == pytest.approx((np.mean(parts), np.std(parts)))


def test_bad_input_is_named():
    with pytest.raises(
        ValueError, match="probabilities has 5 examples, at least 10 are needed for 10 splits"
    ):
        classifier_score(np.full((5, 2), 0.5))
    with pytest.raises(ValueError, match="are they logits"):
        classifier_score(np.ones((20, 3)))
    with pytest.raises(ValueError, match="20 values that are not finite"):
        classifier_score(np.full((10, 2), np.nan))
