"""How the tiny preset's two towers get their weights: contrastive image-text for the eyes, text alone for the language."""
