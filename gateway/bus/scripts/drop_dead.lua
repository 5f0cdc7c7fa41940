#!lua flags=allow-oom
-- Removes dead letters of a user, or of one session of theirs, a part at a time.
--
-- KEYS[1]: the journal, `j:{pN}`
-- ARGV: tenant, user, session id or '', where to begin ('-': with the oldest)
-- Returns: how many, where to go on ('' at the end)

local CHUNK = 20

local dead = 'jd' .. string.sub(KEYS[1], 2)
local tenant, user, session_id, from = unpack(ARGV)
local count, letters = 0, redis.call('XRANGE', dead, from, '+', 'COUNT', CHUNK)
for _, letter in ipairs(letters) do
  local fields = {}
  for i = 1, #letter[2], 2 do
    fields[letter[2][i]] = letter[2][i + 1]
  end
  local owner, id = string.match(fields.session or '', '^(.-):(.*)$')
  if owner == tenant and fields.user == user and (session_id == '' or id == session_id) then
    count = count + redis.call('XDEL', dead, letter[1])
  end
end
return { count, #letters == CHUNK and '(' .. letters[CHUNK][1] or '' }
