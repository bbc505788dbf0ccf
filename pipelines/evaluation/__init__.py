"""Evaluation: reconstruction, likelihood, alignment of pictures and captions, and reports."""
