"""Compiled code for CPUs and its gradients: convolutions, norms and activations. Without a compiler torch does it."""
