#!lua flags=allow-oom
-- A node says that it lives, and learns who else does.
--
-- KEYS[1]: `nodes`, sorted set: node id by the ms until which it counts as alive
-- ARGV: node id ('' only lists), ttl ms (0 leaves), ms after its death that a node is remembered
-- Returns: now ms, then (node id, alive) pairs

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[1] ~= '' then
  if ARGV[2] == '0' then
    redis.call('ZADD', KEYS[1], string.format('%.0f', now - 1), ARGV[1])
  else
    redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - tonumber(ARGV[3])))
local out = { string.format('%.0f', now) }
local nodes = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #nodes, 2 do
  out[#out + 1] = nodes[i]
  out[#out + 1] = tonumber(nodes[i + 1]) >= now and 1 or 0
end
return out
