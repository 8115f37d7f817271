"""Data: LLaVA records, checks before training, collation into packed batches."""
