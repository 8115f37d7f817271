"""FastV in one class: after layer K the decoder goes on with the image rows that the last token attends to most.

Chen et al., arXiv 2403.06764; ``modeling_llama.py`` of pkunlp-icler/FastV, there inside a copy of transformers. Positions stay what they were, text
stays, and the layers after the drop cache only what is left. Run: ``python -m examples.swap.fastv``.
"""

from pathlib import Path

import torch

import lmmblocks as lb


class FastV:
    """Drops the share ``ratio`` of each conversation's image rows before layer ``layer`` (the paper's K and R).

    Scores are those of layer ``layer - 1``: the attention of the last row, mean over heads.
    """

    requires = frozenset({"last_row_scores", "vision", "drop"})

    def __init__(self, layer: int = 2, ratio: float = 0.5) -> None:
        self.layers, self.ratio = (layer,), ratio
        self.options = {"layer": layer, "ratio": ratio}

    def __call__(self, hidden, context):
        is_image, keep = context.vision.mask_T, ~context.vision.mask_T
        first, lengths = 0, []
        for rows, images in zip(context.segments.lengths_q, context.vision.row_counts):
            stay = images - round(images * self.ratio)
            own = slice(first, first + rows)
            scores = context.last_row_scores[own].masked_fill(~is_image[own], -1.0)
            keep.index_fill_(0, first + scores.topk(stay).indices, True)
            lengths.append(rows - images + stay)
            first += rows
        return context.keep(hidden, keep, lengths)


def main() -> None:
    from PIL import Image

    torch.manual_seed(0)
    tokenizer = Path(__file__).parent.parent / "llava15/weights/language"
    model = lb.build("llava15-tiny", hooks=[FastV(layer=2, ratio=0.75)], tokenizer=tokenizer, weights="random")
    messages = [{"role": "user", "content": "<image>\nWhat is in the picture?"}, {"role": "assistant", "content": "A circle."}]
    batch = lb.collate([lb.Sample(messages, [Image.new("RGB", (160, 120), "white")])], model)
    cache = model.decoder.new_cache(1)
    with torch.no_grad():
        model.read(model.encode_images(batch.pixels), batch.plan, cache=cache)
    print(f"rows before the drop (layers 0 and 1): {cache.stored(0)[0]}, of the image {batch.plan.image_rows.shape[0]}")
    print(f"rows after the drop (layers 2 to 4): {cache.stored(2)[0]}")


if __name__ == "__main__":
    main()
