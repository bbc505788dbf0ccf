"""What the language model learns by: the loss, attention for training, and counts of arithmetic."""
