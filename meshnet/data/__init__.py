"""Prepared data: where cases come from, how they are kept, read, cropped and augmented."""
