#!lua
-- Puts a run into its tenant's queue of the agent, and rings.
--
-- KEYS[1]: waiting runs of the agent, hash `aw:{a:agent}`: reference -> since ms
-- ARGV: reference, tenant
-- Returns: 1 when it was added
-- Guarantees: a run waits at most once. A tenant is in the rotation exactly while its queue has
--       something. A reference may be stale; `claim` decides.

local base = string.sub(KEYS[1], 4)
local time = redis.call('TIME')
local added = redis.call('HSETNX', KEYS[1], ARGV[1],
  string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
if added == 1 then
  if redis.call('RPUSH', 'aq:' .. base .. ':' .. ARGV[2], ARGV[1]) == 1 then
    redis.call('RPUSH', 'ar:' .. base, ARGV[2])
  end
end
redis.call('SPUBLISH', 'ag:' .. base, 'ring')
return added
