"""Mixtures, Markov models and topic models: fitted by counting or by expectation maximisation."""
