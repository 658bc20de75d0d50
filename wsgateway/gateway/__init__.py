"""Websockets, from the handshake to the last close frame."""
