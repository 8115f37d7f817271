"""Splice plans: made on the host, or on the device from tensors."""
