"""Serial sections laid onto each other, and expression between them."""
