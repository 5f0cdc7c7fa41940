#!lua flags=allow-oom
-- A worker appends events to the log.
--
-- ARGV: run id, claim id, ordinal of the first event, max events, max bytes,
--       then (output tokens, event JSON) pairs
-- Returns: last seq of the log
-- Guarantees: fenced by claim; applied once by ordinal, in whole or from where an earlier call
--       was applied; entry and push are made in one step, the frame built here and only here.

local run_id, claim_id, ordinal = ARGV[1], ARGV[2], tonumber(ARGV[3])
local run = get(run_key(run_id), 'status', 'attempt', 'claim_id', 'ordinal', 'events', 'bytes',
  'created_ms', 'restarts')
if run.claim_id ~= claim_id or (run.status ~= 'running' and run.status ~= 'cancelling') then
  return fence(get(K.session, 'epoch'), run, claim_id, ordinal)
end
local count = (#ARGV - 5) / 2
local applied = tonumber(run.ordinal) - ordinal
if applied < 0 then
  return fence(get(K.session, 'epoch'), run, claim_id, ordinal)
end
if applied >= count then
  return tonumber(redis.call('HGET', K.session, 'seq'))
end

local size, tokens = 0, 0
for i = applied + 1, count do
  size = size + #ARGV[5 + i * 2]
end
if tonumber(run.events) + count - applied > tonumber(ARGV[4])
  or tonumber(run.bytes) + size > tonumber(ARGV[5]) then
  return refuse('run_too_large')
end

local epoch = redis.call('HGET', K.session, 'epoch')
local entries, bytes = {}, 0
-- The first event tells how long its message waited for it. What a restarted run answers had one.
local since = run.events == '0' and run.restarts == '' and run.created_ms or nil
for i = applied + 1, count do
  local entry = emit(epoch, run_id, 'E', ARGV[5 + i * 2], { out = ARGV[4 + i * 2], since = since })
  since = nil
  entries[#entries + 1] = entry
  bytes = bytes + #entry
  tokens = tokens + tonumber(ARGV[4 + i * 2])
end
publish(entries)
local key = run_key(run_id)
redis.call('HINCRBY', key, 'ordinal', #entries)
redis.call('HINCRBY', key, 'events', #entries)
redis.call('HINCRBY', key, 'bytes', bytes)
if tokens > 0 then
  redis.call('HINCRBY', key, 'tokens', tokens)
end
return tonumber(redis.call('HGET', K.session, 'seq'))
