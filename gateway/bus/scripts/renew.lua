#!lua flags=allow-oom
-- A worker extends its lease.
--
-- ARGV: run id, claim id, lease ms
-- Returns: 0 not held (stop at once), 1 held, 2 held and cancelled (stop in order)

local run = get(run_key(ARGV[1]), 'status', 'claim_id')
if run.claim_id ~= ARGV[2] or (run.status ~= 'running' and run.status ~= 'cancelling') then
  return 0
end
set_due('lease', ARGV[1], now + tonumber(ARGV[3]))
return run.status == 'cancelling' and 2 or 1
