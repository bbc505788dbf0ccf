"""From pictures to a token cache: the encoder, its rows, the writer."""
