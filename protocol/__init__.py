"""The wire of nooble-gateway, version 1, and nothing else.

Pure: the standard library and msgspec, no sockets, no clock, no randomness that is not passed in.

=============  ==============================================================================
codes          error codes and close codes, each with its retry or reconnect policy
frames         client and server frames: frozen structs in two closed unions
events         the AG-UI 1.0 events that the gateway or the SDK itself reads or writes
codec          bytes <-> frames, with limits; every fault is a `ProtocolError`
connection     which client frame is legal in which state of a connection, as a table
transcript     AG-UI events -> messages: the one fold that server and clients share
cursor         the sans-I/O client core: order, duplicates, resume, resend, backoff
=============  ==============================================================================
"""

SUBPROTOCOL = "nooble.v1"
"""The WebSocket subprotocol of this version of the wire."""
