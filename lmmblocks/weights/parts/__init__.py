"""Vision towers and language models of other libraries: configs and names of tensors to ours and back."""
