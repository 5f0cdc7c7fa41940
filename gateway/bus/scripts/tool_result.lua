#!lua
-- Accepts the result of a client tool call; the last one that is missing starts the next run.
--
-- ARGV: user, frame id, run id, body digest, tool call id, tool message JSON, traceparent,
--       seen epoch and seq, fresh epoch, limits
-- Returns: as accept.lua; the run id is '' while other results are missing
-- Guarantees: the first result of a call wins; the next run starts once, with all of them.

local user, frame_id, run_id, digest, call_id, message, traceparent = unpack(ARGV, 1, 7)
local limits = limits_of(ARGV[11])

local session = get_session()
local answer = admit(session, limits, { user = user, frame_id = frame_id, digest = digest,
  run_id = run_id, seen_epoch = ARGV[8], seen_seq = ARGV[9], fresh_epoch = ARGV[10] })
if answer then
  return answer
end
if session.state ~= 'awaiting_input' or session.pending_tools == '' then
  return refuse('interrupt_expired', 'no tool call is pending')
end

local missing, wanted = {}, false
for _, pending in ipairs(cjson.decode(session.pending_tools)) do
  if pending == call_id then
    wanted = true
  else
    missing[#missing + 1] = pending
  end
end
if not wanted then
  return refuse('interrupt_expired', 'this tool call is not pending')
end
redis.call('RPUSH', K.tool_results, message)
set_due('expiry', '', now + limits.session_ttl_ms)
if #missing > 0 then
  redis.call('HSET', K.session, 'pending_tools', cjson.encode(missing))
  remember_id(frame_id, digest, '', limits)
  return { 'accepted', '', '', session.agent }
end

local messages = redis.call('LRANGE', K.tool_results, 0, -1)
create_run(run_id, session, { frame_id = frame_id, messages = table.concat(messages, ','),
  message_list = cjson.encode(messages), task = 'resume', traceparent = traceparent })
remember_id(frame_id, digest, run_id, limits)
forget_input()
return { 'accepted', run_id, queue_run(run_id, limits), session.agent }
