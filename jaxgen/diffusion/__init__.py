"""Diffusion and flow matching: models that turn noise into data a little at a time."""
