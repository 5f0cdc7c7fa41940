#!lua
-- Ends a session. An open run is cancelled, pending ones end after it.
--
-- ARGV: user, limits
-- Returns: completed (1 for the one call that ended it), agent, created_ms, ended_ms
-- Guarantees: nothing is accepted afterwards; every run still gets its terminal event, and
--       followers are told (`!ended`) after the last of them.

local limits = limits_of(ARGV[2])
local session = get_session()
if session.user ~= ARGV[1] then
  return refuse('session_not_found', 'no such session')
end
if session.state == 'ended' then
  return { 0, session.agent, session.created_ms, redis.call('HGET', K.session, 'ended_ms') }
end
if session.state == 'awaiting_input' then
  abandon_input(session, 'abandoned')
end
redis.call('HSET', K.session, 'state', 'ended', 'ended_ms', int(now))
session.state = 'ended'
if session.open ~= '' then
  cancel_open(session, limits)
else
  next_run(session, limits)
  retire_session()
end
return { 1, session.agent, session.created_ms, int(now) }
