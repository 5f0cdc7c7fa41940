#!lua flags=allow-oom
-- Entries of a journal are archived, and leave it.
--
-- KEYS[1]: the journal, `j:{pN}`
-- ARGV: their ids
-- Returns: how many of them there were
-- Guarantees: each is subtracted from the journal's bytes once, however often it is called; nothing
--       is left of them when the journal is empty.

local bytes_key = 'jb' .. string.sub(KEYS[1], 2)
local bytes, count = 0, 0
for _, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  if entry then
    local fields = entry[2]
    for i = 1, #fields, 2 do
      if fields[i] == 'bytes' then
        bytes = bytes + tonumber(fields[i + 1])
      end
    end
    count = count + redis.call('XDEL', KEYS[1], id)
  end
end
if redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('DEL', bytes_key)
elseif bytes > 0 then
  redis.call('DECRBY', bytes_key, string.format('%.0f', bytes))
end
return count
