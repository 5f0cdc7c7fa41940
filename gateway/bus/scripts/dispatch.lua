#!lua
-- Puts a run into its tenant's queue of the agent, and rings.
--
-- KEYS[1]: waiting runs of the agent, hash `aw:{a:agent}`: reference -> since ms
-- ARGV: reference, tenant, ms after which nobody waits any more
-- Returns: how many wait in the tenant's queue now, since when the first of them, in ms
-- Guarantees: a run waits at most once. A tenant is in the rotation exactly while its queue has
--       something. A reference may be stale (`claim` decides), but not for ever: what is older than
--       any run may wait leaves here, so that an agent without workers gathers nothing; a part at a
--       time, as nobody else is served meanwhile.

local MOST = 100

local base = string.sub(KEYS[1], 4)
local queue, rotation = 'aq:' .. base .. ':' .. ARGV[2], 'ar:' .. base
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local head = redis.call('LINDEX', queue, 0)
for _ = 1, MOST do
  local since = head and redis.call('HGET', KEYS[1], head)
  if not head or since and tonumber(since) > now - tonumber(ARGV[3]) then
    break
  end
  redis.call('LPOP', queue)
  redis.call('HDEL', KEYS[1], head)
  head = redis.call('LINDEX', queue, 0)
  if not head then
    redis.call('LREM', rotation, 0, ARGV[2])
  end
end

local added = redis.call('HSETNX', KEYS[1], ARGV[1], string.format('%.0f', now))
if added == 1 and redis.call('RPUSH', queue, ARGV[1]) == 1 then
  redis.call('RPUSH', rotation, ARGV[2])
end
redis.call('SPUBLISH', 'ag:' .. base, 'ring')
head = redis.call('LINDEX', queue, 0)
return { redis.call('LLEN', queue), head and redis.call('HGET', KEYS[1], head) or '' }
