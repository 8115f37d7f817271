"""Weight files: reading, writing, names and what can be wrong with them."""
