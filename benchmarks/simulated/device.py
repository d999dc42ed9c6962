"""Answers of a machine with one GPU, for fake tensors on ``cuda:0``; what happens on it is counted.

``Account`` sees every operation: live bytes and their peak, what convolutions copy because their operands lie in
another layout, the number of kernels, the bytes that they move, and how often the host waits for the device, for a
number or for a copy.
"""

import contextlib
from collections import Counter
from unittest import mock

import torch
import torch.amp.grad_scaler
import torch.cuda.amp.common
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LAST = torch.channels_last_3d
WRITTEN = ("out", "grad_input")  # arguments that a kernel only writes
COPIES = ("aten._to_copy.", "aten.to.", "aten.copy_.")
CONVOLUTIONS = ("aten.convolution.default", "aten.convolution_backward.default")
PINNED: set[int] = set()  # addresses of memory that a device copies from by itself
SMALL = 64 << 10  # bytes that a driver takes at once from any memory
# Not run on the device: views, and what only makes or describes tensors.
FREE = {"aten." + name for name in (
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "select", "slice", "unsqueeze", "squeeze", "expand",
    "detach", "alias", "as_strided", "unbind", "split", "split_with_sizes", "empty", "empty_like", "empty_strided",
    "new_empty", "new_empty_strided", "set_", "lift_fresh", "is_same_size", "result_type", "unfold", "record_stream",
    "is_pinned", "_reshape_alias", "view_as", "flatten", "unflatten")}


def fake(tensor) -> bool:
    """Whether it is on the simulated device."""
    return isinstance(tensor, FakeTensor) and tensor.fake_device.type == "cuda"


def bytes_of(tensors) -> int:
    """Bytes of distinct tensors; of one that is expanded, those that there are."""
    sizes = {t.untyped_storage()._cdata: min(t.numel() * t.element_size(), t.untyped_storage().nbytes())
             for t in tensors}
    return sum(sizes.values())


def lies_channels_last(tensor: torch.Tensor) -> bool:
    """PyTorch's own question whether the strides of a map (B, C, X, Y, Z) are those of channels last."""
    if tensor.dim() != 5 or tensor.stride(1) == 0:
        return False
    least = 0
    for axis in (1, 4, 3, 2, 0):
        size, stride = tensor.shape[axis], tensor.stride(axis)
        if size == 0 or stride < least or (axis == 0 and least == tensor.stride(1)):
            return False
        least = stride * size if size > 1 else stride
    return True


def waited_for(func, args, kwargs, out) -> bool:
    """Whether the host waits for this copy: between host and device, unless it is told not to and the host's memory is
    pinned, or there is little of it to be read."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs
    source = given.get("src", given.get("self"))
    if fake(source) == fake(out):
        return False
    at_once = fake(source) or source.nbytes <= SMALL or getattr(source, "address", None) in PINNED
    return not (given.get("non_blocking") and at_once)


class Account(TorchDispatchMode):
    """What happens on the simulated device while this mode is on. Bytes, kernels and waits are those since the start,
    or by ``phase`` in ``peaks``, ``kernels`` and ``moved``."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.at, self.phase = {}, 0, "", ""
        self.peaks, self.kernels, self.moved, self.flops = Counter(), Counter(), Counter(), Counter()
        self.names, self.copies, self.waits, self.small = Counter(), [], Counter(), []
        self.transfers = Counter()  # copies between host and device that the host waits for
        self.log = []  # (phase, operation, bytes, floating-point operations) of each kernel

    def held(self) -> int:
        """Bytes of all live tensors."""
        for reference in [r for r in self.live if r.expired()]:
            del self.live[reference]
        return sum(self.live.values())

    def add_all(self, tensors) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self.live.setdefault(StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes())

    @contextlib.contextmanager
    def watch(self, phase: str):
        before, self.phase = self.phase, phase
        yield
        self.phase = before

    def layout_copies(self, name: str, args) -> int:
        """Bytes of the maps that a convolution of cuDNN first copies into its layout."""
        if name not in CONVOLUTIONS:
            return 0
        tensors = [a for a in args[:3] if isinstance(a, torch.Tensor)]
        maps, asked = (tensors[:2], tensors[1:]) if "backward" in name else (tensors[:1], tensors[:2])
        layout = LAST if any(map(lies_channels_last, asked)) else torch.contiguous_format
        wrong = [t for t in maps if not t.is_contiguous(memory_format=layout)]
        self.copies += [(name, self.phase, tuple(t.shape), t.stride()) for t in wrong]
        return sum(t.numel() * t.element_size() for t in wrong)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, str(func)
        temporary = self.layout_copies(name, args)
        out = func(*args, **kwargs)
        results = [t for t in tree_leaves(out) if fake(t)]
        for tensor in results:
            storage = tensor.untyped_storage()
            self.live.setdefault(StorageWeakRef(storage), storage.nbytes())
        now = self.held() + temporary
        if now > self.peak:
            self.peak, self.at = now, f"{self.phase} {name}"
        self.peaks[self.phase] = max(self.peaks[self.phase], now)
        inputs = [t for t in tree_leaves((args, kwargs)) if fake(t)]
        if name.startswith("aten._local_scalar_dense") and inputs:
            self.waits[self.phase] += 1
        if name.startswith(COPIES) and waited_for(func, args, kwargs, out):
            self.transfers[self.phase] += 1
        kind = name.rsplit(".", 1)[0]
        if (results or inputs) and kind not in FREE and not name.startswith(("prim.", "aten._local_scalar_dense")):
            read = tree_leaves((args, {key: value for key, value in kwargs.items() if key not in WRITTEN}))
            self.count(name, kind, args, [t for t in read if fake(t)], results)
        return out

    def count(self, name: str, kind: str, args, inputs, results) -> None:
        """One operation: its kernels, the bytes it moves, and its multiplications and additions in convolutions."""
        moved = bytes_of(inputs) + bytes_of(results)  # what is changed in place is read and written
        flops, kernels = 0, 1
        if name in CONVOLUTIONS:
            weight = args[2] if "backward" in name else args[1]
            wanted = sum(args[-1][:2]) if "backward" in name else 1
            grown = args[0]
            flops = 2 * wanted * weight.numel() * (grown.numel() // grown.shape[1])
            kernels = sum(args[-1]) if "backward" in name else 1 + (args[2] is not None)
        if kind in ("aten.native_batch_norm", "aten.cudnn_batch_norm", "aten.cudnn_batch_norm_backward",
                    "aten.native_batch_norm_backward"):  # they read their inputs twice: for sums, then for the result
            moved += sum(t.numel() * t.element_size() for t in inputs if t.dim() == 5)
        self.kernels[self.phase] += kernels
        self.moved[self.phase] += moved
        self.flops[self.phase] += flops
        self.names[self.phase, name] += 1
        self.log.append((self.phase, name, moved, flops))
        if kind.startswith(("aten.native_batch_norm", "aten.batch_norm_")) and any(
                t.dim() == 5 and not t.is_contiguous(memory_format=LAST) for t in inputs):
            self.small.append((name, self.phase))  # this kernel then has a block of threads for each channel only


# ---------------------------------------------------------------- operations without a rule for fake tensors

def _register() -> None:
    """PyTorch has no rule of shapes for the operations that its SyncBatchNorm is made of."""
    library = torch.library.Library("aten", "IMPL", "Meta")

    def channels(x):
        return x.new_empty(x.shape[1], dtype=torch.float32)

    library.impl("batch_norm_stats", lambda x, eps: (channels(x), channels(x)))
    library.impl("batch_norm_elemt", lambda x, weight, bias, mean, inverse, eps: torch.empty_like(x))
    library.impl("batch_norm_elemt.out", lambda x, weight, bias, mean, inverse, eps, out: out)
    library.impl("batch_norm_backward_reduce", lambda g, x, mean, inverse, weight, *wanted: (
        channels(x), channels(x), *(channels(x) if w else x.new_empty(0) for w in wanted[1:])))
    library.impl("batch_norm_backward_elemt", lambda g, x, *others: torch.empty_like(x))
    globals()["_library"] = library  # as long as it lives, so do its rules


@contextlib.contextmanager
def simulated_gpu(engine: bool = False):
    """Within it tensors are fake, and torch.cuda answers as with one GPU. ``engine``: autograd runs as well, which
    takes the library with hooks (``library.load``)."""
    if "_library" not in globals():
        _register()
    answers = {"is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
               "is_bf16_supported": lambda *a, **k: True, "_lazy_init": lambda: None, "is_initialized": lambda: True,
               "set_device": lambda d: None, "get_device_capability": lambda *a: (9, 0),
               "get_device_name": lambda *a: "simulated", "mem_get_info": lambda *a: (140_000_000_000, 141_000_000_000),
               "manual_seed_all": lambda s: None, "synchronize": lambda *a: None}
    PINNED.clear()
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        for name, answer in NUMBERS.items():
            stack.enter_context(mock.patch.object(FakeTensor, name, answer))
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", property(lambda self: True)))
        stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", apply_in_place))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", pinned))
        stack.enter_context(mock.patch.object(  # in which fake tensors fail
            torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else contextlib.nullcontext()))
        stack.enter_context(mock.patch.object(torch, "from_numpy", with_address(torch.from_numpy)))
        real = torch._C._conv_determine_backend_memory_format
        if not engine:  # a build without cuDNN knows no layout of its own
            stack.enter_context(mock.patch.object(torch._C, "_conv_determine_backend_memory_format",
                                                  lambda x, w, backend: cudnn_layout(real, x, w, backend)))
        else:
            for module in (torch.cuda.amp.common, torch.amp.grad_scaler):
                if hasattr(module, "amp_definitely_not_available"):
                    stack.enter_context(mock.patch.object(module, "amp_definitely_not_available", lambda: False))
        yield stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))


def cudnn_layout(real, x, weight, backend):
    """The layout that cuDNN 9 convolves in: channels last if input or weight have it."""
    if not fake(x):
        return real(x, weight, backend)
    return LAST if lies_channels_last(x) or lies_channels_last(weight) else torch.contiguous_format


def pinned(tensor, device=None):
    """A copy of ``tensor`` that counts as pinned."""
    copy = tensor.clone()
    PINNED.add(copy.data_ptr())
    return copy


def with_address(from_numpy):
    """``torch.from_numpy`` whose tensors, fake ones too, know where their memory is."""
    def convert(array):
        tensor = from_numpy(array)
        tensor.address = array.ctypes.data
        return tensor
    return convert


def number_of(value):
    """A stand-in for reading a number back from the device, which is counted as a wait."""
    def read(self, *arguments):
        if fake(self):
            for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
                if isinstance(mode, Account):
                    mode.waits[mode.phase] += 1
        return value(self)
    return read


NUMBERS = {
    "item": number_of(lambda t: False if t.dtype == torch.bool else 0.5 if t.dtype.is_floating_point else 0),
    "__bool__": number_of(lambda t: True), "__float__": number_of(lambda t: 0.5), "__int__": number_of(lambda t: 0),
    "tolist": number_of(lambda t: [0] * t.numel() if t.dim() else 0),
    "new_tensor": lambda self, data, **k: self.new_full((len(data),), data[0]),
}


def apply_in_place(self, fn, recurse=True):
    """``nn.Module._apply`` for fake parameters: new ones in the old ones' places."""
    for module in self.children() if recurse else ():
        module._apply(fn)
    for key, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                new = fn(parameter)
            if new is not parameter:
                self._parameters[key] = torch.nn.Parameter(new.detach(), parameter.requires_grad)
    for key, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[key] = fn(buffer)
    return self
