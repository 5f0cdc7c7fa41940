#!lua flags=allow-oom
-- What nodes tell of themselves: says it for one, and lists what those that live have said.
--
-- KEYS[1]: `nodes`, sorted set: node id by the ms until which it counts as alive; what a node says
--   is the hash `node:{nodes}:ID`, and goes with it
-- ARGV: node id ('' only lists), ttl ms, address, summary, the field to list
-- Returns: (node id, field) pairs

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function said(node)
  return 'node:{' .. KEYS[1] .. '}:' .. node
end
if ARGV[1] ~= '' then
  redis.call('HSET', said(ARGV[1]), 'address', ARGV[3], 'summary', ARGV[4])
  redis.call('PEXPIRE', said(ARGV[1]), ARGV[2])
end
local out = {}
for _, node in ipairs(redis.call('ZRANGE', KEYS[1], string.format('%.0f', now), '+inf', 'BYSCORE')) do
  local field = redis.call('HGET', said(node), ARGV[5])
  if field then
    out[#out + 1] = node
    out[#out + 1] = field
  end
end
return out
