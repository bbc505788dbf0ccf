"""What pictures cost in bits, and what is lost: tokenizers, quantized latents, PCA and codecs."""
