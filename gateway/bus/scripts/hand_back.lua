#!lua flags=allow-oom
-- A worker gives back a run that has no agent event yet.
--
-- ARGV: run id, claim id, limits
-- Returns: 1 when it was held and is queued again, else 0; then the agent

local run = get_run(ARGV[1])
if run.claim_id ~= ARGV[2] or run.status ~= 'running' or run.ordinal ~= '0' then
  return { 0, run.agent }
end
clear_due('lease', ARGV[1])
queue_run(ARGV[1], limits_of(ARGV[3]))
redis.call('HSET', run_key(ARGV[1]), 'worker', '')
return { 1, run.agent }
