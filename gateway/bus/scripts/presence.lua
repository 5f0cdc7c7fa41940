#!lua flags=allow-oom
-- The workers of one agent: says that one lives or leaves, and lists those alive.
--
-- KEYS[1]: presence of the agent, hash `ap:{a:agent}`: worker id -> until_ms slots busy
-- ARGV: worker id ('' only lists), ttl ms (0 leaves), slots, busy
-- Returns: waiting runs, then (slots, busy) of every live worker

local base = string.sub(KEYS[1], 4)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[1] ~= '' then
  if ARGV[2] == '0' then
    redis.call('HDEL', KEYS[1], ARGV[1])
  else
    redis.call('HSET', KEYS[1], ARGV[1],
      string.format('%.0f %d %d', now + tonumber(ARGV[2]), ARGV[3], ARGV[4]))
  end
end
local out = { redis.call('HLEN', 'aw:' .. base) }
local workers = redis.call('HGETALL', KEYS[1])
for i = 1, #workers, 2 do
  local until_ms, slots, busy = string.match(workers[i + 1], '^(%d+) (%d+) (%d+)$')
  if tonumber(until_ms) < now then
    redis.call('HDEL', KEYS[1], workers[i])
  else
    out[#out + 1] = tonumber(slots)
    out[#out + 1] = tonumber(busy)
  end
end
return out
