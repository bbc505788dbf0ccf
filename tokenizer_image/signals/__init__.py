"""Sounds and other signals: examples, built-in drawn ones, and readers of folders."""
