#!lua flags=allow-oom
-- Removes dead letters of a user, or of one session of theirs.
--
-- KEYS[1]: the journal, `j:{pN}`
-- ARGV: tenant, user, session id or ''
-- Returns: how many

local CHUNK = 100

local dead = 'jd' .. string.sub(KEYS[1], 2)
local tenant, user, session_id = unpack(ARGV)
local after, count = '-', 0
while true do
  local letters = redis.call('XRANGE', dead, after, '+', 'COUNT', CHUNK)
  for _, letter in ipairs(letters) do
    local fields = {}
    for i = 1, #letter[2], 2 do
      fields[letter[2][i]] = letter[2][i + 1]
    end
    local owner, id = string.match(fields.session or '', '^(.-):(.*)$')
    if owner == tenant and fields.user == user and (session_id == '' or id == session_id) then
      count = count + redis.call('XDEL', dead, letter[1])
    end
    after = '(' .. letter[1]
  end
  if #letters < CHUNK then
    return count
  end
end
