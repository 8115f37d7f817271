"""Reducers: fewer image rows for the decoder, by pruning, merging or pooling."""

from .pool import Pool
from .prumerge import PruMerge, outlier_counts
from .visionzip import VisionZip

__all__ = ["Pool", "PruMerge", "VisionZip", "outlier_counts"]
