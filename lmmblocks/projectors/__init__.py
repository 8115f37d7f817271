"""Projectors: patch features to rows of the decoder's width."""

from .adaptive_pool import AdaptivePool
from .c_abstractor import CAbstractor
from .identity import Identity
from .image_token import ImageToken
from .ldp import LDP
from .ldpv2 import LDPv2
from .linear import Linear
from .mlp import MLP
from .perceiver import Perceiver
from .pixel_shuffle import PixelShuffle
from .pool import Pool
from .qformer import InstructQFormer, QFormer
from .resampler import Resampler
from .sva import SVA
from .token_packer import TokenPacker

__all__ = [
    "LDP",
    "MLP",
    "SVA",
    "AdaptivePool",
    "CAbstractor",
    "Identity",
    "ImageToken",
    "InstructQFormer",
    "LDPv2",
    "Linear",
    "Perceiver",
    "PixelShuffle",
    "Pool",
    "QFormer",
    "Resampler",
    "TokenPacker",
]
