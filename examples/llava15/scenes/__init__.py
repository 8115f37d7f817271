"""The tiny world: seeded scenes of shapes, handwritten digits and words, with LLaVA-1.5's task types on them."""
