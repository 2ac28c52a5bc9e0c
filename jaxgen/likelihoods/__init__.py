"""Likelihoods: what the numbers mean that a network gives for an example, or for a part of one.

In a VAE they are p(x | z), of what the decoder gives for all of x at once; in an autoregressive model they
are p(x_t | x_1 ... x_{t-1}), of what the network gives for the symbols before. A likelihood of one's own is a
frozen dataclass that derives from `Likelihood`.
"""

from jaxgen.likelihoods.base import Likelihood, sharpened
from jaxgen.likelihoods.pixels import Bernoulli, Gaussian, LogisticMixture
from jaxgen.likelihoods.softmax import Categorical, MuLaw, Softmax, Symbols

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "LogisticMixture",
    "MuLaw",
    "Softmax",
    "Symbols",
    "sharpened",
]
