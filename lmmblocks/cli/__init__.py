"""The command line, one file per command; ``lmmblocks --help`` lists them."""

from .commands import exit_code, main

__all__ = ["exit_code", "main"]
