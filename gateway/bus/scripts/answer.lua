#!lua
-- Accepts the answer to everything on which the last run ended; the next run carries it.
--
-- ARGV: user, frame id, run id, body digest, resume JSON array, traceparent, seen epoch and seq,
--       fresh epoch, limits, interrupt ids
-- Returns: as accept.lua
-- Guarantees: the first complete answer wins; it must cover every open interrupt and no other.

local user, frame_id, run_id, digest, resume, traceparent = unpack(ARGV, 1, 6)
local limits = limits_of(ARGV[10])

local session = get_session()
local answer = admit(session, limits, { user = user, frame_id = frame_id, digest = digest,
  run_id = run_id, seen_epoch = ARGV[7], seen_seq = ARGV[8], fresh_epoch = ARGV[9] })
if answer then
  return answer
end
if session.state ~= 'awaiting_input' or session.interrupts == '' then
  return refuse('interrupt_expired', 'no question is open')
end

local open, missing = {}, 0
for _, interrupt in ipairs(cjson.decode(session.interrupts)) do
  open[interrupt.id] = true
  missing = missing + 1
end
for i = 11, #ARGV do
  if open[ARGV[i]] == nil then
    return refuse('interrupt_expired', 'the answer names a question that is not open')
  end
  if not open[ARGV[i]] then
    return refuse('bad_frame', 'the answer names a question twice')
  end
  open[ARGV[i]] = false
  missing = missing - 1
end
if missing > 0 then
  return refuse('bad_frame', 'the answer must cover every open interrupt')
end

create_run(run_id, session, { frame_id = frame_id, messages = '', message_list = '[]',
  resume = resume, task = 'resume', traceparent = traceparent })
remember_id(frame_id, digest, run_id, limits)
forget_input()
set_due('expiry', '', now + limits.session_ttl_ms)
return { 'accepted', run_id, queue_run(run_id, limits), session.agent }
