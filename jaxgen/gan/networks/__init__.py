"""Pairs of networks: a generator of codes (B, L), and a discriminator's body, whose features (B, F) the last,
linear layer reads.

Every module of this package holds two, `Generator(widths, ...)` and `Discriminator(widths, ...)`, called as

    generator(codes (B, L), train) -> (B, *shape)        discriminator(x (B, ...), train) -> (B, F),

images between -1 and 1. A network of one's own has the same two calls; its fields `shape`, `num_labels` and
`dtype` are filled in from the Config where they are None. If a discriminator has the fields `normalization`
and `std`, the last layer is made like its own: spectrally normalized, with initial weights of that standard
deviation. Discriminators that convolve sow their feature maps (B, h, w, C), one for each width, as "maps" of
the collection "intermediates".
"""
