"""Is a module its weight alone? Asked of a decoder's table and head, whose weights are read without calling the module."""

from __future__ import annotations

import torch.nn as nn


def is_weight(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module does what ``kind`` does with its weight: no adapter overrides it, wraps it or hooks into it.

    Args:
        module: a table or a head.
        kind: ``nn.Embedding``, ``nn.Linear``, or the class that a model brought and that was tried.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module).forward is kind.forward and not hooked and not hasattr(module, "base_layer") and "forward" not in vars(module)
