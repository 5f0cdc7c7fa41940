#!lua flags=no-writes
-- What waits for an agent's workers, by tenant, and who they are.
--
-- KEYS[1]: as in dispatch.lua
-- ARGV: how many tenants to look at, then which (those that an earlier call left; by default all
--       that have waiting runs)
-- Returns: workers, slots, busy slots, the tenants that are left, then (tenant, waiting runs, since
--       when the first, in ms)

local most = tonumber(ARGV[1])
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
local left = {}
local out = { workers, slots, busy, left }
local tenants = #ARGV > 1 and { unpack(ARGV, 2) } or redis.call('LRANGE', 'ar:' .. base, 0, -1)
for i = 1, math.min(most, #tenants) do
  local queue = 'aq:' .. base .. ':' .. tenants[i]
  local head = redis.call('LINDEX', queue, 0)
  if head then
    out[#out + 1] = tenants[i]
    out[#out + 1] = redis.call('LLEN', queue)
    out[#out + 1] = redis.call('HGET', KEYS[1], head) or ''
  end
end
for i = most + 1, #tenants do
  left[#left + 1] = tenants[i]
end
return out
