"""Architectures, and the folder that a trained one is kept in."""
