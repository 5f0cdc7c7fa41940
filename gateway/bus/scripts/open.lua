#!lua
-- Creates a session or finds it, and takes its home when it has none.
--
-- ARGV: user, agent ('' to follow only), metadata JSON, node ('' only looks), dead_home, fresh epoch,
--       limits, on_detach (continue, cancel), attending (1: the node has clients on it), digest of
--       what is to be created ('' where the id alone decides), shared state JSON or '', when its
--       newest run ended (0: none did), then the messages that its transcript begins with, each
--       behind the id of its run
-- Returns: created, homed, user, agent, state, epoch, seq, created_ms, home, interrupts JSON,
--          pending tools JSON, on_detach, home_seq, made here, metadata JSON, then (run id, status)
--          pairs, the open run first
-- Guarantees: a session is created once, whoever repeats the call; another user's answers like an
--          unknown one, and so does one that the user erased, except to who would create it again
--          by the same key; one node is home, and counts what comes after `home_seq`. A node that
--          left told how far it had counted; what a dead one had not counted goes with it.

local user, agent, metadata, node, dead_home, epoch = unpack(ARGV, 1, 6)
local limits = limits_of(ARGV[7])
local created, homed = 0, 0

if redis.call('EXISTS', K.session) == 0 then
  local gone = redis.call('HGET', K.tombstone, 'user') == user
  if gone and ARGV[10] ~= '' then
    return refuse('session_ended', 'the session that this key made was erased')
  end
  if agent == '' or gone then
    return refuse('session_not_found', 'no such session')
  end
  if journal_full(limits) then
    return refuse_full()
  end
  redis.call('HSET', K.session, 'user', user, 'agent', agent, 'epoch', epoch, 'seq', 0, 'state',
    'idle', 'open', '', 'made_of', ARGV[10], 'home', node, 'home_seq', 0, 'made_by', node,
    'created_ms', int(now), 'metadata', metadata, 'log_bytes', 0, 'transcript_bytes', 0,
    'trimmed', 0, 'trimmed_bytes', 0, 'on_detach', ARGV[8], 'shared_state', ARGV[11],
    'last_end_ms', ARGV[12])
  local items = {}
  for i = 13, #ARGV do
    items[#items + 1] = ARGV[i]
  end
  add_items(items, limits)
  index_session(user, 'inf')
  journal_begun(user, agent, metadata, ARGV[8])
  redis.call('DEL', K.tombstone)
  created, homed = 1, 1
end

local session = get_session()
if session.epoch == epoch and session.seq == '0' then
  created, homed = 1, 1  -- by this very call, whose first answer was lost
end
if session.user ~= user then
  return refuse('session_not_found', 'no such session')
end
local made_of = redis.call('HGET', K.session, 'made_of')
if ARGV[10] ~= '' and made_of ~= '' and made_of ~= ARGV[10] then
  return refuse('id_conflict', 'this key was used for another session')
end
if session.state == 'ended' then
  return refuse('session_ended', 'this session is over')
end
local vacant = session.home == '' or (session.home == dead_home and dead_home ~= node)
if created == 0 and vacant and node ~= '' then
  local seq = tonumber(session.seq)
  local from = session.home == '' and tonumber(session.home_seq) or seq
  session.home, session.home_seq = node, int(math.min(from, seq))
  session.made_by = ''
  redis.call('HSET', K.session, 'home', node, 'home_seq', session.home_seq, 'made_by', '')
  homed = 1
  if dead_home ~= '' then
    redis.call('SPUBLISH', K.events, '!home')  -- in case it lives after all
  end
end
if node ~= '' or created == 1 then
  set_due('expiry', '', now + limits.session_ttl_ms)
end
if ARGV[9] == '1' then
  set_detach_due(limits, 'XX')
end

local out = { created, homed, session.user, session.agent, session.state, session.epoch,
  session.seq, session.created_ms, session.home, session.interrupts, session.pending_tools,
  session.on_detach, session.home_seq, session.made_by == node and node ~= '' and 1 or 0,
  session.metadata }
local runs = redis.call('LRANGE', K.pending, 0, -1)
if session.open ~= '' then
  table.insert(runs, 1, session.open)
end
for _, run_id in ipairs(runs) do
  out[#out + 1] = run_id
  out[#out + 1] = redis.call('HGET', run_key(run_id), 'status') or 'pending'
end
return out
