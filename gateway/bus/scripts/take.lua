#!lua flags=allow-oom
-- A worker takes waiting runs, one of each tenant in turn.
--
-- KEYS[1]: as in dispatch.lua
-- ARGV: count
-- Returns: references
-- Guarantees: a tenant with many waiting runs delays another by at most one run a round. What is
--       taken and never claimed is dispatched again by its deadline.

local base = string.sub(KEYS[1], 4)
local out = {}
while #out < tonumber(ARGV[1]) do
  local tenant = redis.call('LPOP', 'ar:' .. base)
  if not tenant then
    break
  end
  local queue = 'aq:' .. base .. ':' .. tenant
  local ref = redis.call('LPOP', queue)
  if redis.call('LLEN', queue) > 0 then
    redis.call('RPUSH', 'ar:' .. base, tenant)
  end
  if ref and redis.call('HDEL', KEYS[1], ref) == 1 then
    out[#out + 1] = ref
  end
end
return out
