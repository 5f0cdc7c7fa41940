#!lua flags=allow-oom
-- Sets an entry of a journal aside, among the partition's dead letters.
--
-- KEYS[1]: the journal, `j:{pN}`
-- ARGV: its id, why
-- Returns: 1, or 0 when there is no such entry (any more)
-- Guarantees: it is in one of the two at any time, and is moved in one step.

local rest = string.sub(KEYS[1], 2)
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not entry then
  return 0
end
local fields, bytes = entry[2], 0
for i = 1, #fields, 2 do
  if fields[i] == 'bytes' then
    bytes = fields[i + 1]
  end
end
fields[#fields + 1] = 'why'
fields[#fields + 1] = ARGV[2]
redis.call('XADD', 'jd' .. rest, '*', unpack(fields))
redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('DECRBY', 'jb' .. rest, bytes)
return 1
