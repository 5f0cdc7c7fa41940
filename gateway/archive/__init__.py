"""SQL: the history, for good, on SQLite or PostgreSQL. Implements `History` of the domain.

==========  ======================================================================================
schema      the tables
migrations  how they came to be, step by step; migrate goes the way
database    `DATABASE_URL` to an engine: bounded calls, one breaker, a check for readiness
faults      what a database's errors mean; errors, what becomes of them
rows        what a batch of the journals says, as rows
writer      writes batches: idempotent, whatever the order
archiver    a node's part in bringing the journals to the writer
reader      `History`: what the archive answers
erasure     removes a user's data, or a session's, and leaves a tombstone
retention   removes what is older than its tenant keeps
statements  what the two kinds of database say in two ways
archive     all of them on one database
archiver    a node's part in bringing the journals to the writer
==========  ======================================================================================
"""
