#!lua flags=allow-oom
-- Cancels a run (by default the open one), or abandons what awaits input.
--
-- ARGV: user, run id or '', frame id, limits
-- Returns: as accept.lua
-- Guarantees: applied once per frame id, so that a repetition cannot hit the next run. A run without
--       a worker ends at once; one with a worker is told, and ended by force after the grace; a
--       pending one ends in its turn.

local user, run_id, frame_id = unpack(ARGV, 1, 3)
local limits = limits_of(ARGV[4])

local session = get_session()
if session.user ~= user then
  return refuse('session_not_found', 'no such session')
end
if session.state == 'ended' then
  note_repetition()
  return { 'accepted', session.open, '', session.agent }
end
local target = run_id ~= '' and run_id or session.open
local digest = 'cancel:' .. run_id
local known, conflict = known_id(frame_id, digest)
if conflict then
  return conflict
end
if known then
  note_repetition()
  -- The answer may have been lost before the next run was dispatched.
  local waiting = session.open ~= ''
    and redis.call('HGET', run_key(session.open), 'status') == 'queued'
  return { 'duplicate', known, waiting and session.open or '', session.agent }
end

local status = target ~= '' and redis.call('HGET', run_key(target), 'status')
if run_id ~= '' and not status then
  return refuse('run_not_found', 'no such run in this session')
end
local dispatch = ''
if target ~= '' and target == session.open then
  dispatch = cancel_open(session, limits)
elseif status == 'pending' then
  redis.call('HSET', run_key(target), 'cancelled', 1)
elseif session.state == 'awaiting_input' and (target == '' or target == session.asked_by) then
  abandon_input(session, 'abandoned')
  dispatch = next_run(session, limits)
end
remember_id(frame_id, digest, target, limits)
return { 'accepted', target, dispatch, session.agent }
