"""Compiled code for CPUs: convolutions, norms and activations, with gradients. Without a compiler PyTorch is used."""
