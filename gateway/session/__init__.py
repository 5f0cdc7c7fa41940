"""The domain: what a session is and how its events reach sockets. No I/O library is imported here.

==========  =======================================================================================
model       the words of the domain as frozen values; what the ports carry
entry       the log's entry: a small header ahead of the bytes that clients read
ports       what the domain needs from the outside, as `typing.Protocol`s, each with its guarantee
probe       telemetry as the flow sees it: one verb per fact
errors      refusals, with their wire code
context     whose work the running code does: the ids of a log line
outbox      what waits for one socket, bounded in bytes
hub         who follows which session on this node: what needs the bus
reading     what one socket reads for itself: how it begins, and the log while it is behind
feed        one followed session: order, gaps, fan-out, counting
home        the one node that counts a session
checks      position checks, which catch a lost last event
unanswered  sessions that may have their home here, for all we know
endings     ends of sessions, each counted once
breaker     leaves alone what fails in a row; agent_breakers: one for each tenant and agent
log         a stretch of a session's log, page by page
snapshot    a session as one frame, for who comes without a cursor
history     a user's sessions and messages: the archive, joined with what lives
service     the verbs of a session: open, message, answer, tool result, cancel, close
beat        this node's sign of life, and what it learns by it
fleet       where the other nodes are, and what they say of themselves
queues      what waits for workers: brought there, and looked at
deadlines   the sweep: every due time of the fleet, acted on by any node
==========  =======================================================================================
"""
