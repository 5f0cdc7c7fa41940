#!lua flags=allow-oom
-- Gives up the home of a session, to another node or to nobody.
--
-- ARGV: node, to
-- Returns: 1 when `node` was home

if redis.call('HGET', K.session, 'home') ~= ARGV[1] then
  return 0
end
redis.call('HSET', K.session, 'home', ARGV[2])
return 1
