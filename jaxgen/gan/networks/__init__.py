"""Pairs of networks: a generator of codes (B, L), and a discriminator's body, whose features (B, F) the last,
linear layer reads.

Every module of this package holds two, `Generator(shape, widths, ...)` and `Discriminator(widths, ...)`,
called as

    generator(codes (B, L), train) -> (B, *shape)        discriminator(x (B, ...), train) -> (B, F),

images between -1 and 1. A network of one's own has the same two calls. Discriminators that convolve sow
their feature maps (B, h, w, C), one for each width, as "maps" of the collection "intermediates".
"""
