"""Scans and masks: files, grids, intensities, lesions, scores. Values in, values out; no torch."""
