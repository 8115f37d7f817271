"""Weights: where they come from, their layouts as data, loading and saving."""

from ..chat import load_tokenizer
from ..files.locate import locate
from .load import load
from .save import FORMATS, save
from .sources import load_decoder, load_encoder

__all__ = ["FORMATS", "load", "load_decoder", "load_encoder", "load_tokenizer", "locate", "save"]
