#!lua flags=allow-oom
-- A worker makes a queued run its own.
--
-- ARGV: run id, worker id, lease ms, run timeout ms, limits, restartable (1 or 0)
-- Returns: attempt, claim id, user, agent, run input JSON, shared state JSON, metadata JSON, task, traceparent,
--       deadline ms, now ms, cancelled, messages; or an empty array when it is not to be had
-- Guarantees: queued -> running by compare-and-set, so one worker gets it; RUN_STARTED is written
--       once however many attempts there are; the same worker asking again before its first event
--       gets the same claim.

local run_id, worker, lease_ms, timeout_ms = unpack(ARGV, 1, 4)
local limits = limits_of(ARGV[5])
local session = get_session()
local run = get_run(run_id)
local again = (run.status == 'running' or run.status == 'cancelling') and run.worker == worker
  and run.ordinal == '0'
if run.status ~= 'queued' and not again then
  return {}
end

local attempt = tonumber(run.attempt)
if not again then
  attempt = attempt + 1
  run.claim_id = new_claim_id(attempt)
  local deadline = run.deadline_ms ~= '' and tonumber(run.deadline_ms)
    or now + tonumber(timeout_ms)
  run.deadline_ms = int(deadline)
  local claimed_ms = run.claimed_ms ~= '' and run.claimed_ms or int(now)  -- the first time
  redis.call('HSET', run_key(run_id), 'status', 'running', 'attempt', attempt, 'claim_id',
    run.claim_id, 'worker', worker, 'claimed_ms', claimed_ms, 'deadline_ms', run.deadline_ms,
    'restartable', ARGV[6])
  if session.state ~= 'ended' then
    redis.call('HSET', K.session, 'state', 'running')
  end
  clear_due('dispatch', run_id)
  clear_due('wait', run_id)
  set_due('lease', run_id, now + tonumber(lease_ms))
  set_due('timeout', run_id, deadline)
  if run.started == '' then
    publish({ begin_run(session, run_id, run, limits, run.queued_ms) })
  end
end
return { attempt, run.claim_id, session.user, session.agent, run_input(run_id, run), session.shared_state,
  session.metadata, run.task, run.traceparent, run.deadline_ms, int(now),
  run.status == 'cancelling' and 1 or 0, conversation(run) }
