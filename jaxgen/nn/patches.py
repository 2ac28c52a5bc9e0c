"""Images as grids of square patches."""

from jax import Array


def to_patches(x: Array, side: int) -> Array:
    """Squares of pixels as positions, (B, H, W, C) -> (B, H / side, W / side, side^2 C)."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height // side, side, width // side, side, channels).swapaxes(2, 3)
    return x.reshape(*x.shape[:3], side * side * channels)


def from_patches(x: Array, side: int) -> Array:
    """The inverse of `to_patches`."""
    count, rows, columns, channels = x.shape
    x = x.reshape(count, rows, columns, side, side, channels // side**2).swapaxes(2, 3)
    return x.reshape(count, rows * side, columns * side, channels // side**2)


def fitting_sizes(height: int, width: int, divisor: int) -> str:
    """The nearest sizes that `divisor` divides, below if there is one and above, in words."""
    below = height // divisor * divisor, width // divisor * divisor
    above = -(-height // divisor) * divisor, -(-width // divisor) * divisor
    return " or ".join(f"{h}x{w}" for h, w in dict.fromkeys((below, above)) if min(h, w) > 0)
