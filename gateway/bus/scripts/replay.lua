#!lua
-- Puts dead letters back at the end of their journal.
--
-- KEYS[1]: the journal, `j:{pN}`
-- ARGV: their ids among the dead letters
-- Returns: how many of them there were
-- Guarantees: as bury.lua

local rest = string.sub(KEYS[1], 2)
local count = 0
for _, id in ipairs(ARGV) do
  local letter = redis.call('XRANGE', 'jd' .. rest, id, id)[1]
  if letter then
    local fields = {}
    for i = 1, #letter[2], 2 do
      local name, value = letter[2][i], letter[2][i + 1]
      if name ~= 'why' then
        fields[#fields + 1] = name
        fields[#fields + 1] = value
      end
      if name == 'bytes' then
        redis.call('INCRBY', 'jb' .. rest, value)
      end
    end
    redis.call('XADD', KEYS[1], '*', unpack(fields))
    count = count + redis.call('XDEL', 'jd' .. rest, id)
  end
end
return count
