"""Drawing: checked requests, completion, best of n, likelihood, and sheets of pictures."""
