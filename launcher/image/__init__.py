"""Container images: what a reference means, whether a squash file is whole, and getting one into place."""
