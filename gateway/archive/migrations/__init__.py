"""The way of the schema, step by step (Alembic). `migrate` goes it.

A step may only add while a version that does not know it still runs: the nodes of a fleet are
restarted one by one, after the migration.
"""
