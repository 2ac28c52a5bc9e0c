"""Normalizing flows: invertible networks between data and noise, with exact likelihoods."""
