"""Packed attention: the op, its reference and its implementations, one file each; ``ops/ladders.py`` has their order."""
