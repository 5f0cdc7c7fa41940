#!lua
-- Reads the log after a cursor.
--
-- ARGV: epoch, seq, count, fresh epoch
-- Returns: status, epoch, last seq, entries
-- Guarantees: entries are contiguous from the cursor. A tail below the cursor means that Redis
--       lost writes that somebody has seen: a new epoch begins, followers get `!reset`.

local session = get_session()
if session.user == '' then
  return { 'gone', '', 0, {} }
end
local after, seq = tonumber(ARGV[2]), tonumber(session.seq)
if ARGV[1] ~= session.epoch then
  return { 'epoch', session.epoch, seq, {} }
end
if after > seq then
  redis.call('HSET', K.session, 'epoch', ARGV[4])
  redis.call('SPUBLISH', K.events, '!reset ' .. ARGV[4])
  return { 'ahead', ARGV[4], seq, {} }
end
if after < tonumber(session.trimmed) then
  return { 'trimmed', session.epoch, seq, {} }
end
local entries = {}
if after < seq then
  for i, item in ipairs(redis.call('XRANGE', K.log, int(after + 1) .. '-0', '+', 'COUNT',
    ARGV[3])) do
    entries[i] = item[2][2]
  end
end
return { 'ok', session.epoch, seq, entries }
