"""How blocks become a model: recipes for each, checks that they fit, and what follows from them together."""
