"""The server: an engine that draws for many at once, and the endpoints beside the page."""
