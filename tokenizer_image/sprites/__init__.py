"""The built-in world of captioned pictures, drawn when they are asked for."""
