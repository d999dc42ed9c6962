"""A scan and its mask: files, grids, grey values, what a mask measures. Values in, values out; no torch."""
