"""Demonstrations, tokenizers and training of the bundled policies."""
