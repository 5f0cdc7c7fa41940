"""`/api/v1`: the HTTP API, for programs without a socket, and `/openapi.json`, which describes it.

=========  ========================================================================================
operation  a row of the table of operations: reads a request, checks it, and hands it on
bodies     what goes in and out, as structs
cursors    where a page ends, as an opaque word
sessions   create, list, read, end, erase
messages   the transcript, a message without a socket, its cancellation
reports    agents, usage
openapi    the document, made from the table and the structs
routes     the table as Starlette's routes
=========  ========================================================================================
"""
