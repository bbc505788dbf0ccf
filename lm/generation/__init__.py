"""Sampling with a language model: image codes, texts, documents, and the steppers that run it token by token."""
