#!lua
-- Cancels a run (by default the open one), or abandons what awaits input.
--
-- ARGV: user, run id or '', limits
-- Returns: as accept.lua
-- Guarantees: safe at any time and any number of times. A run without a worker ends at once; one
--       with a worker is told, and ended by force after the grace; a pending one ends in its turn.

local user, run_id = ARGV[1], ARGV[2]
local limits = limits_of(ARGV[3])

local session = get_session()
if session.user ~= user then
  return refuse('session_not_found', 'no such session')
end
if run_id == '' then
  if session.open ~= '' then
    return { 'accepted', session.open, cancel_open(session, limits), session.agent }
  end
  if session.state == 'awaiting_input' then
    abandon_input(session, 'abandoned')
    return { 'accepted', session.asked_by, next_run(session, limits), session.agent }
  end
  return { 'accepted', '', '', session.agent }
end
local status = redis.call('HGET', run_key(run_id), 'status')
if not status then
  return refuse('run_not_found', 'no such run in this session')
end
local dispatch = ''
if run_id == session.open then
  dispatch = cancel_open(session, limits)
elseif status == 'pending' then
  redis.call('HSET', run_key(run_id), 'cancelled', 1)
elseif session.state == 'awaiting_input' and run_id == session.asked_by then
  abandon_input(session, 'abandoned')
  dispatch = next_run(session, limits)
end
return { 'accepted', run_id, dispatch, session.agent }
