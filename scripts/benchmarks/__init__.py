"""One file per benchmark; `figures.py` has their common options, timing, and rows."""
