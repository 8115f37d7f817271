"""The contracts between blocks: what travels from collator to loss, and what a block must offer.

Shape legend, used in every docstring and hot function (``q_TNE``):

``S`` segments (conversations), ``T`` packed tokens, ``R`` supervised rows, ``I`` images, ``M`` image rows of a batch,
``P`` patches, ``H``/``W`` grid, ``N`` heads, ``K`` kv heads, ``E`` head dim, ``D`` model dim, ``C`` encoder dim, ``V`` vocabulary.

Structural typing throughout: a user's class needs no base class, only the attributes and methods named here.
"""

from .batch import Batch
from .errors import LmmError, closest, first_line, refuse_unknown, some
from .features import PATCHES, FeatureSpec, VisionFeatures
from .grids import Grid, TileGrid, image_count
from .instruction import Instruction
from .keywords import ByKeywords
from .machine import MachineError, machine_failure
from .plan import IGNORE_LABEL, IMAGE_TOKEN, ImageSpan, SplicePlan
from .protocols import Arrangement, Decoder, Encoder, LayerHook, Preprocess, Projector, Reducer, Tokenizer
from .sample import Sample, as_sample, image_list
from .segments import Segments, boundaries

__all__ = [
    "IGNORE_LABEL",
    "IMAGE_TOKEN",
    "PATCHES",
    "Arrangement",
    "Batch",
    "ByKeywords",
    "Decoder",
    "Encoder",
    "FeatureSpec",
    "Grid",
    "ImageSpan",
    "Instruction",
    "LayerHook",
    "LmmError",
    "MachineError",
    "Preprocess",
    "Projector",
    "Reducer",
    "Sample",
    "Segments",
    "SplicePlan",
    "TileGrid",
    "Tokenizer",
    "VisionFeatures",
    "as_sample",
    "boundaries",
    "closest",
    "first_line",
    "image_count",
    "image_list",
    "machine_failure",
    "refuse_unknown",
    "some",
]
