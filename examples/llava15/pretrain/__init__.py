"""The tiny preset's pretrained parts: contrastive image-text for the tower, text alone for the decoder."""
