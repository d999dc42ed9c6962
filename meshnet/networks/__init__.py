"""Network architectures, and the folder of a trained network."""
