#!lua flags=no-writes
-- What waits for an agent's workers, by tenant, and who they are.
--
-- KEYS[1]: as in dispatch.lua
-- Returns: workers, slots, busy slots, then (tenant, waiting runs, since when the first, in ms)

local base = string.sub(KEYS[1], 4)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local workers, slots, busy = 0, 0, 0
for _, worker in ipairs(redis.call('HVALS', 'ap:' .. base)) do
  local until_ms, has, uses = string.match(worker, '^(%d+) (%d+) (%d+)$')
  if tonumber(until_ms) >= now then
    workers, slots, busy = workers + 1, slots + tonumber(has), busy + tonumber(uses)
  end
end
local out = { workers, slots, busy }
for _, tenant in ipairs(redis.call('LRANGE', 'ar:' .. base, 0, -1)) do
  local queue = 'aq:' .. base .. ':' .. tenant
  local head = redis.call('LINDEX', queue, 0)
  if head then
    out[#out + 1] = tenant
    out[#out + 1] = redis.call('LLEN', queue)
    out[#out + 1] = redis.call('HGET', KEYS[1], head) or ''
  end
end
return out
