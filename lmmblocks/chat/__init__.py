"""Conversations: messages -> template -> pieces -> token ids and labels."""

from .answers import answer_ends, answer_margins
from .derive import from_tokenizer
from .formats import FORMAT_PROMPTS, with_format
from .load import load_tokenizer
from .lookup import TEMPLATES, get_template, missing_tokens
from .marked import MarkedTemplate
from .messages import Message, llava15_messages
from .pieces import IMAGE_MARKER, Piece, written
from .saving import template_from_dict, template_setting, template_to_dict
from .templates import CaptionTemplate, ChatTemplate, Template
from .tokenize import Tokens, decode_supervised, encode_chat, tokenize

__all__ = [
    "FORMAT_PROMPTS",
    "IMAGE_MARKER",
    "TEMPLATES",
    "CaptionTemplate",
    "ChatTemplate",
    "MarkedTemplate",
    "Message",
    "Piece",
    "Template",
    "Tokens",
    "answer_ends",
    "answer_margins",
    "decode_supervised",
    "encode_chat",
    "from_tokenizer",
    "get_template",
    "llava15_messages",
    "load_tokenizer",
    "missing_tokens",
    "template_from_dict",
    "template_setting",
    "template_to_dict",
    "tokenize",
    "with_format",
    "written",
]
