#!lua flags=allow-oom
-- Acts on a due time that has passed, if it still holds.
--
-- ARGV: kind, run id or '', limits, node that calls, then the nodes that are alive
-- Returns: an action and what it needs:
--   {'nothing'}
--   {'dispatch', run id, agent}
--   {'end', code, attempt, claim id, ordinal, agent, seq of its RUN_STARTED or 0, epoch, seq}
--       (the caller reads what it said, and finish.lua ends it)
--   {'expired', agent, created_ms, now_ms}
--   {'adopt', user, home}: it is dead, or there is none, or it is the one that calls
-- Guarantees: any node may call it any number of times. The node that made a session expire is told
--       so again when it asks again, and no other is. None expires before the archive has it.
--
-- Kinds: dispatch (a queued run nobody fetched), wait (queued too long), lease (its worker is
-- gone), timeout (the run takes too long), grace (a cancelled agent does not stop), input (nobody
-- answers), detach (no client is there, and the session wants none of its runs to go on then),
-- expiry (the session is dormant too long), home (does anybody count this open run?).

local DISPATCH_CAP_MS = 10000
local ARCHIVE_RETRY_MS = 30000

local kind, run_id = ARGV[1], ARGV[2]
local limits = limits_of(ARGV[3])
local member = due_member(kind, run_id)
local at = redis.call('ZSCORE', K.due, member)
if not at and kind == 'expiry' then
  local expired = get(K.tombstone, 'by', 'agent', 'created_ms', 'at_ms')
  if expired.by ~= '' and expired.by == ARGV[4] then
    return { 'expired', expired.agent, expired.created_ms, expired.at_ms }
  end
end
if not at or tonumber(at) > now then
  return { 'nothing' }
end

local function forget()
  redis.call('ZREM', K.due, member)
  return { 'nothing' }
end

local session = get_session()
if session.user == '' then
  return forget()
end

local alive = false
for i = 5, #ARGV do
  alive = alive or session.home == ARGV[i]
end
-- A node asks itself, too: the answer by which it became home may have been lost.
local adopt = { 'adopt', session.user, session.home }

if kind == 'home' then
  if session.open ~= run_id then
    return forget()
  end
  set_due('home', run_id, now + limits.node_lease_ms)
  return alive and session.home ~= ARGV[4] and { 'nothing' } or adopt
end

if kind == 'expiry' then
  if session.open ~= '' or alive then
    set_due('expiry', '', now + limits.session_ttl_ms)
    return session.home == ARGV[4] and adopt or { 'nothing' }
  end
  if not journal_forgot(session) then
    set_due('expiry', '', now + math.min(limits.session_ttl_ms, ARCHIVE_RETRY_MS))
    return { 'nothing' }
  end
  clear_due('input')
  session.state = 'ended'
  next_run(session, limits)
  journal_over(session, 'expired', int(now))
  redis.call('SPUBLISH', K.events, '!ended')
  redis.call('ZREM', K.due, member)
  redis.call('HSET', K.tombstone, 'by', ARGV[4], 'agent', session.agent, 'created_ms',
    session.created_ms, 'at_ms', int(now))
  redis.call('PEXPIRE', K.tombstone, AFTERLIFE_MS)
  forget_session(session.user)
  return { 'expired', session.agent, session.created_ms, int(now) }
end

if kind == 'input' then
  if session.state ~= 'awaiting_input' then
    return forget()
  end
  abandon_input(session, 'expired')
  local next_id = next_run(session, limits)
  return next_id ~= '' and { 'dispatch', next_id, session.agent } or { 'nothing' }
end

if kind == 'detach' then
  redis.call('ZREM', K.due, member)
  if session.open == '' then
    return { 'nothing' }
  end
  for _, pending in ipairs(redis.call('LRANGE', K.pending, 0, -1)) do
    redis.call('HSET', run_key(pending), 'cancelled', 1)
  end
  cancel_open(session, limits)
  return { 'nothing' }
end

local run = get_run(run_id)
local held = run.status == 'running' or run.status == 'cancelling'

local function end_with(code)
  return { 'end', code, run.attempt, run.claim_id, run.ordinal, run.agent,
    run.first_seq ~= '' and run.first_seq or '0', session.epoch, session.seq }
end

-- For a deadline that nothing can move: its worker is fenced off now, so that it cannot go on
-- appending while what it said is read. Once: nodes that read at the same time do not fence off each
-- other.
local function cut_off(code)
  if run.cut == '' then
    run.attempt = int(redis.call('HINCRBY', run_key(run_id), 'attempt', 1))
    run.claim_id = new_claim_id(run.attempt)
    redis.call('HSET', run_key(run_id), 'claim_id', run.claim_id, 'cut', 1)
  end
  return end_with(code)
end

if kind == 'dispatch' and run.status == 'queued' then
  -- Each time later: the queue has it, unless the node died before it got there.
  local times = redis.call('HINCRBY', run_key(run_id), 'dispatches', 1)
  set_due('dispatch', run_id, now + math.min(limits.dispatch_retry_ms * 4 ^ times,
    DISPATCH_CAP_MS))
  return { 'dispatch', run_id, run.agent }
elseif kind == 'wait' and run.status == 'queued' then
  return end_with('wait')
elseif kind == 'lease' and held then
  if run.ordinal ~= '0' or run.status == 'cancelling'
    or tonumber(run.attempt) >= limits.max_attempts then
    return end_with(run.status == 'cancelling' and 'cancelled' or 'worker_lost')
  end
  clear_due('lease', run_id)
  queue_run(run_id, limits)
  return { 'dispatch', run_id, run.agent }
elseif kind == 'timeout' and held then
  return cut_off('timeout')
elseif kind == 'grace' and run.status == 'cancelling' then
  return cut_off('cancelled')
end
return forget()
