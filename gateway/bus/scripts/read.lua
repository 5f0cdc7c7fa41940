#!lua flags=allow-oom
-- Reads the log after a cursor.
--
-- ARGV: epoch, seq, count, fresh epoch, ms of the event at the cursor (0: not known), then runs that
--       the caller knows and has not seen the end of
-- Returns: status, epoch, last seq, ended (1 when the session and its last run are over), entries,
--       those of the runs that are over
-- Guarantees: entries are contiguous from the cursor, and bounded in bytes as well (at least one);
--       more follow while the last one is below the last seq. A tail below the cursor means that
--       Redis lost writes that somebody has seen: a new epoch begins, followers get `!reset`. So
--       does another event at the cursor, or a run that is not known.

local MAX_BYTES = 256 * 1024
local CHUNK = 32

local session = get_session()
if session.user == '' then
  return { 'gone', '', 0, 0, {}, {} }
end
local after = tonumber(ARGV[2])
local ended = session.state == 'ended' and session.open == '' and 1 or 0
if ARGV[1] ~= session.epoch then
  return { 'epoch', session.epoch, session.seq, ended, {}, {} }
end
if detect_loss(session, ARGV[1], ARGV[2], ARGV[4]) then
  return { 'ahead', session.epoch, session.seq, ended, {}, {} }
end

-- After a loss new events take the numbers of those that were lost, and soon the tail proves nothing.
local function rewritten()
  local item = ARGV[5] ~= '0' and redis.call('XRANGE', K.log, int(after) .. '-0', int(after) .. '-0')[1]
  return item and string.match(item[2][2], '^%S+ %S+ %S+ %S+ (%d+)') ~= ARGV[5]
end
local lost, over = rewritten(), {}
for i = 6, #ARGV do
  local status = redis.call('HGET', run_key(ARGV[i]), 'status')
  if not status then
    lost = true
  elseif status == 'done' then
    over[#over + 1] = ARGV[i]
  end
end
if lost then
  begin_epoch(session, ARGV[4])
  return { 'ahead', session.epoch, session.seq, ended, {}, {} }
end
if after < tonumber(session.trimmed) then
  return { 'trimmed', session.epoch, session.seq, ended, {}, over }
end

local last, count, bytes, entries = tonumber(session.seq), tonumber(ARGV[3]), 0, {}
while after < last and #entries < count and bytes < MAX_BYTES do
  local chunk = redis.call('XRANGE', K.log, int(after + 1) .. '-0', '+', 'COUNT',
    math.min(CHUNK, count - #entries))
  if #chunk == 0 then
    break
  end
  for _, item in ipairs(chunk) do
    entries[#entries + 1] = item[2][2]
    bytes = bytes + #item[2][2]
    after = after + 1
    if bytes >= MAX_BYTES then
      break
    end
  end
end
return { 'ok', session.epoch, session.seq, ended, entries, over }
