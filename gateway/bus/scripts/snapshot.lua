#!lua flags=no-writes
-- Reads what a newcomer must know, in one step.
--
-- ARGV: none
-- Returns: epoch, seq, seq of the open run's RUN_STARTED (0: none yet), shared state JSON, messages,
--       each behind the id of its run, and when its newest run ended, ms; or an empty array when
--       there is no session. The open run's events are read page by page.

local session = get_session()
if session.user == '' then
  return {}
end
local first_seq = session.open ~= '' and redis.call('HGET', run_key(session.open), 'first_seq')
return { session.epoch, session.seq, first_seq or '0', session.shared_state,
  redis.call('LRANGE', K.transcript, 0, -1), tonumber(session.last_end_ms) or 0 }
