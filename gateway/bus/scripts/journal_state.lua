#!lua flags=no-writes
-- How much waits in a journal. (Its oldest entry may be large; only its id is told.)
--
-- KEYS[1]: the journal, `j:{pN}`
-- ARGV: none
-- Returns: entries, id of the oldest or '', bytes, dead letters

local rest = string.sub(KEYS[1], 2)
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
return { redis.call('XLEN', KEYS[1]), oldest and oldest[1] or '',
  tonumber(redis.call('GET', 'jb' .. rest)) or 0, redis.call('XLEN', 'jd' .. rest) }
