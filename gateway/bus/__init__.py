"""Redis (or Valkey) >= 7: live state, the log, pub/sub, queues. Implements the ports of the domain.

===========  ======================================================================================
keys         names of keys and channels, partitions
connection   `REDIS_URL` to a client: one server or a cluster; what is checked at the start
scripts      the Lua scripts in `scripts/`, loaded once, called with bounded retry
sessions     `Sessions`: a session's live state, for the node that serves its clients
runs         `RunQueue`: from accepted runs to workers, and a run's life in their hands
queues       `AgentQueues`: what waits for workers, as an onlooker sees it
directory    `Directory`: which agents exist and who serves them
journal      `Journal`: what waits for the archive
erasure      `Erasure`: removes what lives of a session, and of a user
deadlines    `Deadlines`: due times on Redis's clock
fleet        `Announcements`: what nodes tell of themselves
notices      `Notices`: the process's one subscriber
bus          all of them on one client
embedded     the server that is started when no `REDIS_URL` is set
===========  ======================================================================================

Every state script touches one hash slot: a session's keys carry its partition as hash tag, an
agent's keys the agent. Scripts are idempotent, so a call whose answer was lost is simply repeated;
redis-py's own retries are off.
"""
