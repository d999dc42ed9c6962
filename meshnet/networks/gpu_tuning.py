"""What may be quicker on one GPU and slower on another: three switches of a training step."""

from dataclasses import dataclass

MULTIPLE = 8  # channels that tensor cores take at once, in half precision


@dataclass(frozen=True)
class Tuning:
    """``fold_bias``: a norm takes the bias of its convolution, so that nothing is added to the map. ``pad_channels``:
    maps have zeros up to a multiple of ``MULTIPLE`` channels. ``benchmark``: cuDNN tries its algorithms on the first
    step."""

    fold_bias: bool = True
    pad_channels: bool = False
    benchmark: bool = False

    def width(self, channels: int) -> int:
        """The channels of a map in memory."""
        return -(-channels // MULTIPLE) * MULTIPLE if self.pad_channels else channels
