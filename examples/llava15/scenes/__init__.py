"""The tiny world: seeded scenes of shapes, handwritten digits and words, with LLaVA's task types on them."""
