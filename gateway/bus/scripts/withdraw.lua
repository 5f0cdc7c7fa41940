#!lua flags=allow-oom
-- Takes runs out of an agent's queues that are over, so that nobody waits behind them or counts them.
--
-- KEYS[1]: as in dispatch.lua
-- ARGV: references
-- Returns: how many waited
-- Guarantees: cheap even in a deep queue. What is over stands there once, and mostly near its head:
--       the search for it ends where it is found.

local base = string.sub(KEYS[1], 4)
local count = 0
for _, ref in ipairs(ARGV) do
  if redis.call('HDEL', KEYS[1], ref) == 1 then
    count = count + 1
    local tenant = string.match(ref, '^[^|]*')
    local queue = 'aq:' .. base .. ':' .. tenant
    redis.call('LREM', queue, 1, ref)
    if redis.call('LLEN', queue) == 0 then
      redis.call('LREM', 'ar:' .. base, 1, tenant)
    end
  end
end
return count
