"""What the built-in worlds are read by, and figures of drawn pictures, captions and signals by them."""
