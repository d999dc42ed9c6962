"""Synthetic strokes: anatomy, lesions, and what a scanner makes of them."""
