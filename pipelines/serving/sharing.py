"""A public address for a server that listens on this machine alone, through gradio's tunnel."""

from __future__ import annotations

import secrets


def public_address(host: str, port: int) -> str:
    """Open the tunnel and return its address, which works until this process ends.

    gradio fetches the tunnel's program once; whoever knows the address can use the server.

    Raises:
        ValueError: the tunnel's server or its program cannot be reached.
    """
    from gradio.networking import setup_tunnel

    try:
        return setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
    except Exception as error:  # of the network, of the download, or of the program
        raise ValueError(f"--share: there is no tunnel ({error}); it needs the internet: leave --share out") from error
