"""Ways through a latent space, of any model that has one: pure functions of codes."""
