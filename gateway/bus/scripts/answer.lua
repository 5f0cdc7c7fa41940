#!lua
-- Accepts the answer to everything on which the last run ended; the next run carries it.
--
-- ARGV: user, frame id, run id, body digest, resume JSON array, traceparent, limits, interrupt ids
-- Returns: as accept.lua
-- Guarantees: the first complete answer wins; it must cover every open interrupt and no other.

local user, frame_id, run_id, digest, resume, traceparent = unpack(ARGV, 1, 6)
local limits = limits_of(ARGV[7])

local session = get_session()
if session.user ~= user then
  return refuse('session_not_found', 'no such session')
end
local known, conflict = known_id(frame_id, digest)
if conflict then
  return conflict
end
if known then
  local waiting = redis.call('HGET', run_key(known), 'status') == 'queued'
  return { 'duplicate', known, waiting and known or '', session.agent }
end
if session.state == 'ended' then
  return refuse('session_ended', 'this session is over')
end
if session.state ~= 'awaiting_input' or session.interrupts == '' then
  return refuse('interrupt_expired', 'no question is open')
end

local open, missing = {}, 0
for _, interrupt in ipairs(cjson.decode(session.interrupts)) do
  open[interrupt.id] = true
  missing = missing + 1
end
for i = 8, #ARGV do
  if open[ARGV[i]] == nil then
    return refuse('interrupt_expired', 'the answer names a question that is not open')
  end
  if open[ARGV[i]] then
    open[ARGV[i]] = false
    missing = missing - 1
  end
end
if missing > 0 then
  return refuse('bad_frame', 'the answer must cover every open interrupt')
end

create_run(run_id, session, { frame_id = frame_id, messages = '', message_list = '[]',
  resume = resume, task = 'resume', traceparent = traceparent })
remember_id(frame_id, digest, run_id, limits)
redis.call('HDEL', K.session, 'interrupts', 'pending_tools')
clear_due('', 'input')
set_due('expiry', '', now + limits.session_ttl_ms)
return { 'accepted', run_id, queue_run(run_id, limits), session.agent }
