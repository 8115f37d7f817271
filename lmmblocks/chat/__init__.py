"""Conversations: messages -> template -> pieces -> token ids and labels."""

from .formats import FORMAT_PROMPTS, with_format
from .load import load_tokenizer
from .messages import Message, llava15_messages
from .pieces import IMAGE_MARKER, Piece
from .templates import TEMPLATES, CaptionTemplate, ChatTemplate, Template, get_template
from .tokenize import Tokens, decode_supervised, encode_chat, tokenize

__all__ = [
    "FORMAT_PROMPTS",
    "IMAGE_MARKER",
    "TEMPLATES",
    "CaptionTemplate",
    "ChatTemplate",
    "Message",
    "Piece",
    "Template",
    "Tokens",
    "decode_supervised",
    "encode_chat",
    "get_template",
    "llava15_messages",
    "load_tokenizer",
    "tokenize",
    "with_format",
]
