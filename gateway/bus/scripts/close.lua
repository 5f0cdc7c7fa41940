#!lua flags=allow-oom
-- Ends a session. An open run is cancelled, pending ones end after it.
--
-- ARGV: user, id of this call, limits, 1 to ask only what became of the call
-- Returns: completed (1 for the one call that ended it, and its repetitions), agent, created_ms,
--       ended_ms (0: it is not over)
-- Guarantees: nothing is accepted afterwards; every run still gets its terminal event, and
--       followers are told (`!ended`) after the last of them.

local limits = limits_of(ARGV[3])
local session = get_session()
if session.user == '' and ARGV[4] == '1' then
  local ending = erased(ARGV[1], ARGV[2])
  if ending then
    return ending
  end
end
if session.user ~= ARGV[1] then
  return refuse('session_not_found', 'no such session')
end
if session.state == 'ended' then
  note_repetition()
  local ended = get(K.session, 'ended_ms', 'ended_by')
  local by_this_call = ended.ended_by == ARGV[2] and 1 or 0
  return { by_this_call, session.agent, session.created_ms, ended.ended_ms }
end
if ARGV[4] == '1' then
  return { 0, session.agent, session.created_ms, 0 }
end
if session.state == 'awaiting_input' then
  abandon_input(session, 'abandoned')
end
redis.call('HSET', K.session, 'state', 'ended', 'ended_ms', int(now), 'ended_by', ARGV[2])
session.state = 'ended'
if session.open ~= '' then
  cancel_open(session, limits)
else
  next_run(session, limits)
  retire_session(session)
end
return { 1, session.agent, session.created_ms, int(now) }
