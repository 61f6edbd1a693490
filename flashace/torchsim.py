"""The name by which TorchSim's users know `flashace.engines.torchsim`."""

from flashace.engines.torchsim import FlashACEModel

__all__ = ["FlashACEModel"]
