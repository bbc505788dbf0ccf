"""The web page: its fields, what its buttons do, and its pictures as they come."""
