#!lua flags=allow-oom
-- Ends a run: by its worker, or by any node when a deadline has passed.
--
-- ARGV: run id, claim id, ordinal (events of the run so far), by ('worker' or 'deadline'),
--       kind letter, terminal event JSON, total output tokens or '', input tokens or '',
--       interrupts JSON or '', pending tools JSON or '', shared state JSON or '', error code,
--       limits, fresh run id, role that says something in its messages ('assistant' or '-'), then
--       they, each as JSON
-- Returns: the session's next run to dispatch or '', its agent
-- Guarantees: terminal event, transcript, journal, the session's state and its next run change in
--       one step; fenced by claim and ordinal, and a deadline must still be there and have
--       passed; the same call again changes nothing and answers the same. A restartable run that
--       lost its worker, and was not cancelled, is followed by a new one with the fresh id, at most
--       so often that all of them together have as many attempts as one may have.

local run_id, claim_id, ordinal = unpack(ARGV, 1, 3)
local by_worker = ARGV[4] == 'worker'
local limits = limits_of(ARGV[13])
local session = get_session()
local run = get_run(run_id)

if run.status == 'done' and run.claim_id == claim_id and by_worker then
  local waiting = session.open ~= ''
    and redis.call('HGET', run_key(session.open), 'status') == 'queued'
  return { waiting and session.open or '', session.agent }
end
local held = run.status == 'running' or run.status == 'cancelling'
  or (run.status == 'queued' and not by_worker)
if not held or run.claim_id ~= claim_id or run.ordinal ~= ordinal then
  return fence(session, run, claim_id, ordinal)
end
if not by_worker then
  local passed = false
  for _, kind in ipairs({ 'wait', 'lease', 'timeout', 'grace' }) do
    local at = redis.call('ZSCORE', K.due, due_member(kind, run_id))
    passed = passed or (at and tonumber(at) <= now)
  end
  if not passed then
    return refuse('fenced')
  end
end

local rest = '0'
if ARGV[7] ~= '' then
  rest = int(math.max(0, tonumber(ARGV[7]) - tonumber(run.tokens)))
end
if ARGV[11] ~= '' then
  redis.call('HSET', K.session, 'shared_state', ARGV[11])
  session.shared_state = ARGV[11]
end
local messages = {}
for i = 16, #ARGV do
  messages[#messages + 1] = ARGV[i]
end
local restart = ARGV[12] == 'worker_lost' and run.restartable == '1' and run.status == 'running'
  and tonumber(run.attempt) < limits.max_attempts
local next_id = end_run(session, run_id, run, limits, { kind = ARGV[5], event = ARGV[6],
  out = rest, into = ARGV[8] ~= '' and ARGV[8] or '0', interrupts = ARGV[9],
  pending_tools = ARGV[10], code = ARGV[12], role = ARGV[15], messages = messages,
  restart_as = restart and ARGV[14] })
return { next_id, session.agent }
