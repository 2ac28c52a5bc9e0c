"""Layers shared by the networks of several families."""
