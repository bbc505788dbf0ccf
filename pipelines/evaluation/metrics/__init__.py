"""Metrics of pictures, codes and latents, each by itself: tensors and arrays in, figures out."""
