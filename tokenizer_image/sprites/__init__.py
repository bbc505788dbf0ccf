"""The built-in world of captioned pictures, drawn on the fly."""
