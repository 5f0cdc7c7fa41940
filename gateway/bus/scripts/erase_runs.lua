#!lua flags=allow-oom
-- Removes what finished runs of a session left, ahead of erase.lua, which would be long about
-- thousands of them.
--
-- ARGV: user, where to go on ('0': from the beginning)
-- Returns: where to go on, '0' at the end
-- Guarantees: the session's answers to known message ids stay.

local COUNT = 200

if redis.call('HGET', K.session, 'user') ~= ARGV[1] then
  return { '0' }
end
local page = redis.call('HSCAN', K.id_runs, ARGV[2], 'COUNT', COUNT)
for i = 2, #page[2], 2 do
  local key = run_key(string.match(page[2][i], '^%S*'))
  if redis.call('HGET', key, 'status') == 'done' then
    redis.call('UNLINK', key)
  end
end
return { page[1] }
