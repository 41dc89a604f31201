"""pi0, pi0.5 and pi0-FAST in JAX and flax.nnx: the mathematics, with no robot and no page in it."""
