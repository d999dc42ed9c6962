"""A CUDA device that is simulated: PyTorch's fake tensors on ``cuda:0``, on a machine without one.

It shows devices, types, layouts, which operations run and the bytes that live tensors take. It shows no speed, no
numbers, and no memory that cuDNN or the allocator takes for itself.
"""
