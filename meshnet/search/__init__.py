"""Hyperparameter search by asynchronous successive halving. Knows no network and no torch."""
