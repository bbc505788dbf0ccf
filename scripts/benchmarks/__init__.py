"""One file per benchmark; `figures.py` times and prints."""
