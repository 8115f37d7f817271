"""Conversations: messages -> template -> pieces -> token ids and labels."""

from .answers import answer_ends, answer_margins, decode_supervised, stop_texts, with_ends, with_stops
from .built_in import TEMPLATES
from .derive import from_tokenizer
from .formats import FORMAT_PROMPTS, with_format
from .load import load_tokenizer
from .lookup import get_template, missing_tokens, template_setting
from .marked import MarkedTemplate
from .messages import Message, llava15_messages
from .of_model import OfModel, of_model
from .pieces import IMAGE_MARKER, Piece, count_markers, escape_markers, written
from .prompted import PromptTemplate
from .saving import template_from_dict, template_to_dict
from .templates import CaptionTemplate, ChatTemplate, Template
from .to_jinja import from_jinja, to_jinja
from .tokenize import Tokens, encode_chat, tokenize
from .tokenizer_files import write_tokenizer

__all__ = [
    "FORMAT_PROMPTS",
    "IMAGE_MARKER",
    "TEMPLATES",
    "CaptionTemplate",
    "ChatTemplate",
    "MarkedTemplate",
    "Message",
    "OfModel",
    "Piece",
    "PromptTemplate",
    "Template",
    "Tokens",
    "answer_ends",
    "answer_margins",
    "decode_supervised",
    "count_markers",
    "encode_chat",
    "escape_markers",
    "from_jinja",
    "from_tokenizer",
    "get_template",
    "llava15_messages",
    "load_tokenizer",
    "missing_tokens",
    "of_model",
    "stop_texts",
    "template_from_dict",
    "template_setting",
    "template_to_dict",
    "to_jinja",
    "tokenize",
    "with_ends",
    "with_stops",
    "with_format",
    "write_tokenizer",
    "written",
]
