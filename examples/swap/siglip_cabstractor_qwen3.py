"""SigLIP, C-Abstractor and Qwen3: one word each. ``--tiny`` makes a small model with random weights instead of a full one without memory."""

import sys

import lmmblocks as lb
from lmmblocks.config import Block


def build(tiny: bool = False) -> lb.LMM:
    if not tiny:  # leave device out to read the weights
        return lb.build("llava15-7b", encoder="siglip-so400m-384", projector="c_abstractor", decoder="qwen3-4b", template="chatml", device="meta")
    vit = Block("siglip", dict(dim=32, layers=2, heads=2, mlp_dim=64, image_size=64, patch=8))
    llm = Block("transformer", dict(dim=32, layers=2, heads=4, kv_heads=2, head_dim=16, ffn_dim=64, vocab=99, qk_norm=True, eps=1e-6))
    tokens = Block("c_abstractor", dict(grid=4, dim=32))
    return lb.build("llava15-7b", encoder=vit, projector=tokens, decoder=llm, template="chatml", weights="random")


if __name__ == "__main__":
    print(build("--tiny" in sys.argv))
