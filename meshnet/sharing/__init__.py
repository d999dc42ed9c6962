"""Exchange of models and data sets: the Hub, ONNX, brainchop's layout, .pth files. Imported by scripts only."""
