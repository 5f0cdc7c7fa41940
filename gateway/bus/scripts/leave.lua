#!lua flags=allow-oom
-- Gives up the home of a session. Followers are told (`!home`), so that another node may take it.
--
-- ARGV: node, the last seq that it has counted, limits
-- Returns: 1 when `node` was home

if redis.call('HGET', K.session, 'home') ~= ARGV[1] then
  return 0
end
redis.call('HSET', K.session, 'home', '', 'home_seq', ARGV[2], 'made_by', '')
set_due('expiry', '', now + limits_of(ARGV[3]).session_ttl_ms)
redis.call('SPUBLISH', K.events, '!home')
return 1
