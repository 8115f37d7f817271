"""Files and folders of models: where they are, what they are, and JSON read in one way."""
