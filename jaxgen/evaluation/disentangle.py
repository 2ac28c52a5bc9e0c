"""Do single codes stand for single factors? Mutual information gap, and disentanglement by importances.

Both compare codes z (N, L) with the factors v (N, F) the data were made from, integers 0, 1, ... by factor.
Chen et al. 2018 (MIG); Eastwood & Williams 2018 (DCI).
"""

from typing import Any

import numpy as np

from jaxgen.evaluation import checks


def mutual_information_gap(codes: Any, factors: Any, bins: int = 20) -> float:
    """Mean over factors of (I of the best code - I of the second) / H(factor); codes (N, L), factors (N, F).

    I(z_l; v_f) is from the histogram of each code in `bins` bins of equal width. Near 1 if every factor has
    a code of its own, near 0 if it has none or shares two. Histograms overrate I by about
    (bins - 1) (values - 1) / (2 N) nats: 10,000 examples are usual.

    Raises:
        ValueError: codes or factors of different N, fewer than two codes, a factor with a single value, or
            values that are not finite.
    """
    from sklearn.metrics import mutual_info_score

    codes, factors = _checked(codes, factors)
    if bins < 2:
        raise ValueError(f"bins must be at least 2, not {bins}")
    binned = [np.digitize(code, np.histogram_bin_edges(code, bins)[1:-1]) for code in codes.T]
    gaps = []
    for factor in factors.T:
        information = np.sort([mutual_info_score(code, factor) for code in binned])
        gaps.append((information[-1] - information[-2]) / mutual_info_score(factor, factor))
    return float(np.mean(gaps))


def dci(codes: Any, factors: Any, predictor: str = "gradient_boosting", seed: int = 0) -> dict[str, Any]:
    """{"disentanglement", "completeness", "informativeness", "predictor"} of codes (N, L) and factors (N, F).

    A predictor of each factor from all codes is fitted to half of the examples; R (L, F) are its importances.
    Disentanglement is the mean over codes, weighted by their share of R, of 1 - H_F(row of R): whether a code
    tells of one factor only. Completeness is the mean over factors of 1 - H_L(column): whether a factor is
    told of by one code only. Entropies are in base F and L, so that both lie in [0, 1]. Informativeness is
    the prediction error on the other half, 0 for perfect: the fraction of wrong values, or, for "lasso", the
    mean squared error in units of the factor's variance.

    The values depend on the predictor: "gradient_boosting", scikit-learn's defaults, is that of Locatello et
    al. 2019, slow where a factor has many values; "lasso" (alpha 0.02) is one of the paper's, linear, for
    factors whose values have an order.

    Raises:
        ValueError: an unknown predictor, codes or factors of different N, fewer than two codes or factors, a
            factor with a single value, or values that are not finite.
    """
    if predictor not in _PREDICTORS:
        raise ValueError(f"predictor must be one of {', '.join(_PREDICTORS)}, not {predictor!r}")
    codes, factors = _checked(codes, factors)
    if factors.shape[1] < 2:
        raise ValueError("disentanglement needs at least 2 factors, not 1")
    order = np.random.default_rng(seed).permutation(len(codes))
    codes = (codes - codes.mean(0)) / np.maximum(codes.std(0), 1e-12)
    train, test = np.array_split(order, 2)
    fits = [_PREDICTORS[predictor](codes, factor, train, test, seed) for factor in factors.T]
    importances = np.stack([importance for importance, _ in fits], 1)
    weights = importances.sum(1) / max(importances.sum(), 1e-12)
    return {
        "disentanglement": float(weights @ _concentration(importances)),
        "completeness": float(_concentration(importances.T).mean()),
        "informativeness": float(np.mean([error for _, error in fits])),
        "predictor": predictor,
    }


def _boosting(codes, factor, train, test, seed):
    from sklearn.ensemble import GradientBoostingClassifier

    model = GradientBoostingClassifier(random_state=seed).fit(codes[train], factor[train])
    return model.feature_importances_, (model.predict(codes[test]) != factor[test]).mean()


def _lasso(codes, factor, train, test, seed):
    from sklearn.linear_model import Lasso

    factor = (factor - factor.mean()) / factor.std()
    model = Lasso(alpha=0.02, random_state=seed).fit(codes[train], factor[train])
    return np.abs(model.coef_), ((model.predict(codes[test]) - factor[test]) ** 2).mean()


_PREDICTORS = {"gradient_boosting": _boosting, "lasso": _lasso}


def _concentration(importances: np.ndarray) -> np.ndarray:
    """1 - entropy of each row, in base of its length; 0 for a row of zeros."""
    total = importances.sum(1, keepdims=True)
    p = np.where(total > 0, importances / np.where(total > 0, total, 1.0), 1 / importances.shape[1])
    return 1.0 + (p * np.log(np.where(p > 0, p, 1.0))).sum(1) / np.log(importances.shape[1])


def _checked(codes: Any, factors: Any) -> tuple[np.ndarray, np.ndarray]:
    (codes,) = checks.features(codes=codes, at_least=4, why="halves to fit and test on")
    codes, factors = np.asarray(codes, np.float64), np.asarray(factors)
    if factors.ndim != 2 or len(factors) != len(codes):
        raise ValueError(f"factors must be ({len(codes)}, factors), as many as codes, not {factors.shape}")
    if codes.shape[1] < 2:
        raise ValueError("at least 2 codes are needed, not 1")
    columns = {f"factor {index}": factors[:, index] for index in range(factors.shape[1])}
    checks.labels(len(codes), **columns)
    for name, values in columns.items():
        if values.min() == values.max():
            raise ValueError(f"{name} has the single value {values[0]}: there is nothing to tell of it")
    return codes, factors.astype(np.int64)
