"""The edges: where clients, operators and probes come in. Most offer `routes(...)` to `app`.

=============  =====================================================================================
websocket      `/ws`: the handshake, and the connections that it lets in
connection     one WebSocket, speaking `nooble.v1` and following one session
socket         what uvicorn's WebSocket protocol lacks: ending a socket whose peer does not read
http_protocol  what uvicorn's HTTP protocol lacks: bounds on what is not body
api            `/api/v1`: sessions, messages, agents, usage; and `/openapi.json`
health         `/health/liveness`, `/health/readiness`
metrics        `/metrics`, `/metrics/targets`
console        `/console`: the fleet at a glance
pages          `/`, `/web/...`: the chat page, and the files of all pages
applications   the routes of all edges as the applications of the two ports
guard          refuses requests that another site makes a browser send
principal      who speaks
problem        refusals as RFC 9457 problem documents
=============  =====================================================================================
"""
