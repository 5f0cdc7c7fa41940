#!lua
-- Reads all that a newcomer must know, in one step.
--
-- ARGV: none
-- Returns: epoch, seq, open run id, shared state JSON, messages, event frames of the open run;
--       or an empty array when there is no session

local session = get_session()
if session.user == '' then
  return {}
end
local frames = {}
if session.open ~= '' then
  local first_seq = redis.call('HGET', run_key(session.open), 'first_seq')
  if first_seq then
    for i, item in ipairs(redis.call('XRANGE', K.log, first_seq .. '-0', '+')) do
      frames[i] = string.match(item[2][2], '\n(.*)$')
    end
  end
end
return { session.epoch, session.seq, session.open, session.shared_state,
  redis.call('LRANGE', K.transcript, 0, -1), frames }
