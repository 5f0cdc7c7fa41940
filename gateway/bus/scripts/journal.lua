-- Shared by every session script: the partition's journal, the outbox between live state and archive.
--
-- An entry says what it is (`entry`), whose (`session`, `user`), and how many bytes it counts for
-- (`bytes`). Entries stay until the archive has them: what is bounded is what may add to them.

local ENTRY_BYTES = 200  -- what an entry costs beside its words

local function journal(kind, user, ...)
  local fields = { 'entry', kind, 'session', ident, 'user', user, ... }
  local bytes = ENTRY_BYTES
  for i = 2, #fields, 2 do
    bytes = bytes + #tostring(fields[i])
  end
  fields[#fields + 1] = 'bytes'
  fields[#fields + 1] = int(bytes)
  redis.call('INCRBY', K.journal_bytes, int(bytes))
  redis.call('HSET', K.session, 'journal_id', redis.call('XADD', K.journal, '*', unpack(fields)))
end

local function journal_begun(user, agent, metadata, on_detach)
  journal('begun', user, 'agent', agent, 'metadata', metadata, 'on_detach', on_detach, 'at_ms',
    int(now))
end

-- Its time is later than that of the session's last one, so that runs, and what they asked and said,
-- have an order for good. A run that restarts another asks nothing: the lost one did.
local function journal_run(session, run_id, run, said, o)
  local ended_ms = math.max(now, (tonumber(session.last_end_ms) or 0) + 1)
  session.last_end_ms = int(ended_ms)
  redis.call('HSET', K.session, 'last_end_ms', session.last_end_ms)
  local asked = run.restarts == '' and run.messages or ''
  journal('run', session.user, 'run', run_id, 'agent', session.agent, 'task', run.task,
    'kind', o.kind, 'code', o.code or '', 'created_ms', run.created_ms, 'claimed_ms',
    run.claimed_ms, 'ended_ms', session.last_end_ms, 'asked', '[' .. asked .. ']', 'said',
    '[' .. table.concat(said, ',') .. ']', 'event', o.event, 'state', session.shared_state)
end

local function journal_over(session, status, at_ms)
  journal('over', session.user, 'status', status, 'at_ms', at_ms)
end

-- Whether the archive has all that the journal was told of this session. Entries leave it from its
-- beginning on, more or less: while an older one is there, we wait.
local function journal_forgot(session)
  local oldest = redis.call('XRANGE', K.journal, '-', '+', 'COUNT', 1)[1]
  if not oldest or session.journal_id == '' then
    return true
  end
  local ms, nth = string.match(oldest[1], '^(%d+)-(%d+)$')
  local last_ms, last_nth = string.match(session.journal_id, '^(%d+)-(%d+)$')
  ms, last_ms = tonumber(ms), tonumber(last_ms)
  return last_ms < ms or (last_ms == ms and tonumber(last_nth) < tonumber(nth))
end

-- Nothing new may come in then; runs that are accepted still write their end.
local function journal_full(limits)
  return (tonumber(redis.call('GET', K.journal_bytes)) or 0) >= limits.journal_bytes
end

local function refuse_full()
  return refuse('unavailable', 'too much history waits to be archived; try again later')
end
