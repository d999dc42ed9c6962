"""Models and data sets handed on and taken in: the Hub, ONNX, brainchop's layout, .pth. Used by scripts alone."""
