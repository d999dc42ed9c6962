"""A training step of a MeshNet on a GPU, as one operation of autograd that decides itself what it keeps.

Maps have their channels last in memory. A block keeps the output of its convolution, that of its activation, both or
neither, as ``gpu_memory.Plan`` says; what is missing is computed again on the way back.
"""

import torch
from torch import nn
from torch.nn import functional

from meshnet.networks import gpu_norm
from meshnet.networks.gpu_memory import Plan
from meshnet.networks.gpu_tuning import Tuning

LAST = torch.channels_last_3d


def usable(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether a step on ``x`` is computed here: on a CUDA device, in a type that its norms have kernels for."""
    return (x.device.type == "cuda" and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
            and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
            and all(map(gpu_norm.usable, model.blocks)))


def run(model: nn.Module, plan: Plan, x: torch.Tensor) -> torch.Tensor:
    """Logits (B, K, X, Y, Z) of ``x`` (B, C, X, Y, Z)."""
    parameters = [p for module in (*model.blocks, model.head) for p in module.parameters()]
    return GpuStep.apply(list(model.blocks), model.head, plan, model.tuning, x, *parameters)


class GpuStep(torch.autograd.Function):
    """The blocks and the last layer of a MeshNet as one operation of autograd."""

    @staticmethod
    def forward(ctx, blocks: list[nn.Module], head: nn.Module, plan: Plan, tuning: Tuning, x: torch.Tensor,
                *parameters: torch.Tensor) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        ctx.step = step = Step(blocks, head, plan, tuning, dtype)
        with torch.autocast("cuda", enabled=False):
            logits = step.forward(x)
        ctx.save_for_backward(x)
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        step, ctx.step = ctx.step, None
        if step is None:
            raise RuntimeError("Trying to backward through a MeshNet a second time: what it kept is gone")
        x, = ctx.saved_tensors
        with torch.autocast("cuda", enabled=False):
            grad_x, found = step.backward(x, gradient.to(step.dtype))
        parameters = [p for module in (*step.blocks, step.head) for p in module.parameters()]
        return (None, None, None, None, grad_x, *(found.get(p) for p in parameters))


class Step:
    """One step: what it has kept, and its two passes."""

    def __init__(self, blocks: list[nn.Module], head: nn.Module, plan: Plan, tuning: Tuning, dtype: torch.dtype):
        self.blocks, self.head, self.plan, self.tuning, self.dtype = blocks, head, plan, tuning, dtype
        self.kept: list[gpu_norm.Kept] = []
        self.convolved: dict[int, torch.Tensor] = {}  # {block: output of its convolution}
        self.active: dict[int, torch.Tensor] = {}  # {block: its output}
        inputs = [blocks[0].conv.in_channels, *(tuning.width(block.conv.out_channels) for block in blocks)]
        self.weights = [self.widen(block.conv.weight, inputs[i + 1], inputs[i]) for i, block in enumerate(blocks)]
        self.head_weight = self.widen(head.weight, head.out_channels, inputs[-1])

    def widen(self, weight: torch.Tensor, outputs: int, inputs: int) -> torch.Tensor:
        """``weight`` (O, I, k, k, k) with zeros for further channels, in the type and layout of the maps."""
        more = (outputs - weight.shape[0], inputs - weight.shape[1])
        weight = weight.detach().to(self.dtype)
        if any(more):
            weight = functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, more[1], 0, more[0]))
        return weight.contiguous(memory_format=LAST)

    def folds(self, block: nn.Module) -> bool:
        """Whether the norm of ``block`` takes the bias of its convolution."""
        return self.tuning.fold_bias and gpu_norm.takes_bias(block)

    def own_bias(self, block: nn.Module) -> torch.Tensor | None:
        """The bias that the convolution of ``block`` adds itself."""
        if block.conv.bias is None or self.folds(block):
            return None
        return gpu_norm.widened(block.conv.bias, self.tuning.width(block.conv.out_channels)).to(self.dtype)

    def norms_bias(self, block: nn.Module) -> torch.Tensor | None:
        """The bias that the norm of ``block`` takes."""
        return block.conv.bias.detach() if block.conv.bias is not None and self.folds(block) else None

    def convolve(self, block: int, z: torch.Tensor) -> torch.Tensor:
        """The output of a block's convolution."""
        module = self.blocks[block]
        dilation = module.conv.dilation
        y = functional.conv3d(z, self.weights[block], self.own_bias(module), padding=dilation, dilation=dilation)
        return y.contiguous(memory_format=LAST)  # as it lies, but where a map has one channel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits; fills what ``plan`` keeps."""
        z = self.image(x)
        for i, block in enumerate(self.blocks):
            y = self.convolve(i, z)
            del z
            into = None if i in self.plan.convolved else y
            z, kept = gpu_norm.forward(block, y, self.norms_bias(block), into=into)
            self.kept.append(kept)
            if i in self.plan.convolved:
                self.convolved[i] = y
            if i in self.plan.active:
                self.active[i] = z
            del y
        bias = None if self.head.bias is None else self.head.bias.detach().to(self.dtype)
        return functional.conv3d(z, self.head_weight, bias)

    def image(self, x: torch.Tensor) -> torch.Tensor:
        """The input in the type and layout of the maps."""
        return x.detach().to(self.dtype).contiguous(memory_format=LAST)

    def output(self, x: torch.Tensor, block: int) -> torch.Tensor:
        """The output of ``block`` (-1: the input), kept or computed again. Missing convolutions below are kept from
        here on, since their own gradient needs them next."""
        if block < 0:
            return self.image(x)
        if block in self.active:
            return self.active.pop(block)
        if block not in self.convolved:
            self.convolved[block] = self.convolve(block, self.output(x, block - 1))
        module = self.blocks[block]
        return gpu_norm.forward(module, self.convolved[block], self.norms_bias(module), self.kept[block])[0]

    def backward(self, x: torch.Tensor, gradient: torch.Tensor):
        """The gradients of ``x`` and of each parameter, from that of the logits (B, K, X, Y, Z)."""
        result, head = {}, self.head
        z = self.output(x, len(self.blocks) - 1)
        if head.bias is not None:
            result[head.bias] = gradient.sum((0, 2, 3, 4), dtype=torch.float32).to(head.bias.dtype)
        gradient = gradient.contiguous(memory_format=LAST)
        gradient, found, _ = convolution_backward(gradient, z, self.head_weight, 1, 0, (True, True, False))
        result[head.weight] = cut(found, head.weight)
        for i in reversed(range(len(self.blocks))):
            block = self.blocks[i]
            if not self.plan.reuse:
                z = None
            y = self.convolved.pop(i)
            gpu_norm.activation_backward(block, y, z, self.norms_bias(block), self.kept[i], gradient)
            z = None
            gradient, found, of_bias = gpu_norm.norm_backward(block, y, self.kept[i], gradient)
            del y
            result.update(found)
            below = [self.output(x, i - 1)]  # handed over, so that it can be freed there
            gradient, z = self.convolution(i, below, gradient, of_bias, i > 0 or x.requires_grad, result)
        return gradient, result

    def convolution(self, i: int, below: list[torch.Tensor], gradient: torch.Tensor, of_bias: torch.Tensor | None,
                    wanted: bool, result: dict) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The gradient of a block's input, which is taken out of ``below``, and that input if it is used again; those
        of the convolution's parameters are added to ``result``."""
        z = below.pop()
        conv, weight = self.blocks[i].conv, self.weights[i]
        own = conv.bias is not None and not self.folds(self.blocks[i])
        together = self.plan.reuse or not wanted
        dilation = conv.dilation[0]
        grad_z, found, bias = convolution_backward(
            gradient, z, weight, dilation, dilation, (wanted and together, True, own))
        result[conv.weight] = cut(found, conv.weight)
        if conv.bias is not None:
            bias = bias if own else of_bias
            result[conv.bias] = bias[:conv.out_channels].to(conv.bias.dtype)
        if together:
            return grad_z, z
        del z  # the gradient of the input does not need it: a convolution with flipped weights
        flipped = weight.flip(2, 3, 4).transpose(0, 1).contiguous(memory_format=LAST)
        return functional.conv3d(gradient, flipped, None, padding=dilation, dilation=dilation), None


def convolution_backward(gradient: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, dilation: int, padding: int,
                         wanted: tuple[bool, bool, bool]):
    """The gradients of a convolution's input, weight and bias, as far as they are ``wanted``."""
    return torch.ops.aten.convolution_backward(
        gradient, z, weight, [weight.shape[0]], [1] * 3, [padding] * 3, [dilation] * 3, False, [0] * 3, 1, list(wanted))


def cut(found: torch.Tensor, weight: nn.Parameter) -> torch.Tensor:
    """The gradient ``found`` of a widened weight as that of ``weight``."""
    return found[:weight.shape[0], :weight.shape[1]].to(weight.dtype)
