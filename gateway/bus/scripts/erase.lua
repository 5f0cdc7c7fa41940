#!lua flags=allow-oom
-- Removes a session and all that it has, at once.
--
-- ARGV: user, id of this call
-- Returns: as close.lua
-- Guarantees: its worker is told to stop and can write nothing more; followers are told (`!ended`);
--       for this user nobody makes the session again while the tombstone is there, also where there
--       was no session to remove. The journal gets no entry.

local CHUNK = 1000  -- keys that one command takes

local user, call_id = unpack(ARGV)
local session = get_session()
local repeated = session.user == '' and erased(user, call_id)
if repeated then
  return repeated
end
local owner = session.user ~= '' and session.user or redis.call('HGET', K.tombstone, 'user')
if owner and owner ~= user then
  return refuse('session_not_found', 'no such session')
end

if session.user ~= '' then
  local ended = get(K.session, 'ended_ms', 'ended_by')
  if session.state ~= 'ended' then
    ended = { ended_ms = int(now), ended_by = call_id }
  end
  redis.call('HSET', K.tombstone, 'by', ended.ended_by, 'agent', session.agent, 'created_ms',
    session.created_ms, 'at_ms', ended.ended_ms)
  if session.open ~= '' then
    clear_run_dues(session.open)
    redis.call('SPUBLISH', K.control, session.open)
  end
  for _, run_ids in ipairs({ { session.open }, redis.call('LRANGE', K.pending, 0, -1),
    redis.call('HVALS', K.id_runs) }) do
    for i, run_id in ipairs(run_ids) do
      run_ids[i] = run_key(string.match(run_id, '^%S*'))
    end
    for i = 1, #run_ids, CHUNK do
      redis.call('UNLINK', unpack(run_ids, i, math.min(i + CHUNK - 1, #run_ids)))
    end
  end
  redis.call('ZREM', K.due, due_member('expiry'), due_member('input'), due_member('detach'))
  forget_session(session.user)
  redis.call('SPUBLISH', K.events, '!ended')
end
redis.call('HSET', K.tombstone, 'erased', 1, 'user', user)
redis.call('PEXPIRE', K.tombstone, AFTERLIFE_MS)
return erased(user, call_id)
