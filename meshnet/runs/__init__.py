"""A run: its folder, and where it is placed. No torch, no network."""
