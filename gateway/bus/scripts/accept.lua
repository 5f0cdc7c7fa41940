#!lua
-- Accepts a user message: it makes exactly one run.
--
-- ARGV: user, frame id, run id, body digest, message JSON, further input fields, when_busy,
--       traceparent, epoch and seq that the caller has seen ('' and 0: none), fresh epoch, limits
-- Returns: status (accepted, queued, duplicate), run id, run to dispatch or '', agent
-- Guarantees: the same frame id again answers `duplicate` with the first run (and names it for
--       dispatch while it waits); with another body it is refused; nothing is half done.

local user, frame_id, run_id, digest, message, fields, when_busy, traceparent = unpack(ARGV, 1, 8)
local limits = limits_of(ARGV[12])

local session = get_session()
local answer = admit(session, limits, { user = user, frame_id = frame_id, digest = digest,
  run_id = run_id, seen_epoch = ARGV[9], seen_seq = ARGV[10], fresh_epoch = ARGV[11] })
if answer then
  return answer
end
if session.state == 'awaiting_input' and when_busy ~= 'interrupt' then
  return refuse('interrupt_pending', 'the agent waits for an answer; give it, or send with when_busy=interrupt')
end
if session.open ~= '' then
  if when_busy == 'reject' then
    return refuse('busy', 'a run is open')
  end
  if redis.call('LLEN', K.pending) >= limits.pending_runs then
    return refuse('busy', 'too many messages are waiting in this session')
  end
end

create_run(run_id, session, { frame_id = frame_id, messages = message,
  message_list = cjson.encode({ message }), fields = fields, task = 'run',
  traceparent = traceparent })
remember_id(frame_id, digest, run_id, limits)
set_due('expiry', '', now + limits.session_ttl_ms)

if session.open ~= '' then
  if when_busy == 'enqueue' then
    redis.call('RPUSH', K.pending, run_id)
    return { 'queued', run_id, '', session.agent }
  end
  redis.call('LPUSH', K.pending, run_id)
  local dispatch = cancel_open(session, limits)
  return { dispatch == run_id and 'accepted' or 'queued', run_id, dispatch, session.agent }
end
if session.state == 'awaiting_input' then
  abandon_input(session, 'abandoned')
end
return { 'accepted', run_id, queue_run(run_id, limits), session.agent }
