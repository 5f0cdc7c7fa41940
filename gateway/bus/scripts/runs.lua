-- Shared by every session script: runs, and the transcript that they make.

-- The transcript ------------------------------------------------------------------------------

-- An item is `run id SP message`; the newest stay.
local function add_items(items, limits)
  local added = 0
  for _, item in ipairs(items) do
    redis.call('RPUSH', K.transcript, item)
    added = added + #item
  end
  local bytes = redis.call('HINCRBY', K.session, 'transcript_bytes', added)
  local count = redis.call('LLEN', K.transcript)
  while count > 1
    and (count > limits.transcript_messages or bytes > limits.transcript_bytes) do
    bytes = redis.call('HINCRBY', K.session, 'transcript_bytes',
      -#redis.call('LPOP', K.transcript))
    count = count - 1
  end
end

local function add_messages(run_id, messages, limits)
  local items = {}
  for i, message in ipairs(messages) do
    items[i] = run_id .. ' ' .. message
  end
  add_items(items, limits)
end

-- The messages from the first on, but for the last `without`.
local function transcript(without)
  local messages = redis.call('LRANGE', K.transcript, 0, -1 - without)
  for i, item in ipairs(messages) do
    messages[i] = string.sub(item, string.find(item, ' ', 1, true) + 1)
  end
  return messages
end

-- Runs ----------------------------------------------------------------------------------------

local function terminal_json(run_id, outcome)
  return '{"type":"RUN_FINISHED","threadId":"' .. string.match(ident, ':(.+)$') .. '","runId":"'
    .. run_id .. '","outcome":{"type":"' .. outcome .. '"}}'
end

-- The run's own RunAgentInput; `messages` are only the new ones.
local function run_input(run_id, run)
  local thread_id = string.match(ident, ':(.+)$')
  local out = '{"threadId":"' .. thread_id .. '","runId":"' .. run_id .. '","messages":['
    .. run.messages .. ']'
  if run.fields ~= '' then
    out = out .. ',' .. run.fields
  end
  if run.resume ~= '' then
    out = out .. ',"resume":' .. run.resume
  end
  return out .. '}'
end

-- RUN_STARTED, and the run's new messages into the transcript: once, at the first claim or, for a
-- run that no worker ever got, at its end. What a restarted run answers is in the transcript already.
-- `since`: when it became its turn, where a worker ends the waiting.
local function begin_run(session, run_id, run, limits, since)
  local parent = ''
  if run.restarts ~= '' then
    parent = '","parentRunId":"' .. run.restarts
  elseif run.messages ~= '' then
    add_messages(run_id, cjson.decode(run.message_list), limits)
  end
  local entry = emit(session.epoch, run_id, 'S', '{"type":"RUN_STARTED","threadId":"'
    .. string.match(ident, ':(.+)$') .. '","runId":"' .. run_id .. parent .. '","input":'
    .. run_input(run_id, run) .. '}', { task = run.task, since = since })
  redis.call('HSET', run_key(run_id), 'started', 1, 'first_seq',
    redis.call('HGET', K.session, 'seq'))
  return entry
end

-- Puts a run where workers look for it: it is the session's open run now.
local function queue_run(run_id, limits)
  redis.call('HSET', K.session, 'open', run_id, 'state', 'queued')
  redis.call('HSET', run_key(run_id), 'status', 'queued', 'queued_ms', int(now), 'dispatches', 0)
  redis.call('HDEL', run_key(run_id), 'cut')
  set_due('dispatch', run_id, now + limits.dispatch_retry_ms)
  set_due('wait', run_id, now + limits.queue_wait_ms)
  if redis.call('HGET', K.session, 'on_detach') == 'cancel' then
    set_detach_due(limits, 'NX')
  end
  set_due('home', run_id, now + limits.node_lease_ms)
  return run_id
end

local function create_run(run_id, session, o)
  redis.call('HSET', run_key(run_id), 'status', 'pending', 'agent', session.agent, 'frame_id',
    o.frame_id, 'messages', o.messages, 'message_list', o.message_list, 'fields', o.fields or '',
    'resume', o.resume or '', 'task', o.task, 'traceparent', o.traceparent, 'created_ms', int(now),
    'attempt', 0, 'claim_id', '', 'ordinal', 0, 'events', 0, 'bytes', 0, 'tokens', 0)
end

-- The session was closed, and its last run is over.
local function retire_session(session)
  redis.call('SPUBLISH', K.events, '!ended')
  journal_over(session, 'completed', redis.call('HGET', K.session, 'ended_ms'))
  redis.call('ZREM', K.due, due_member('expiry'), due_member('input'), due_member('detach'))
  index_session(session.user, int(now + AFTERLIFE_MS))
  for _, key in ipairs(SESSION_KEYS) do
    redis.call('PEXPIRE', key, AFTERLIFE_MS)
  end
end

local RUN_FIELDS = { 'status', 'agent', 'messages', 'message_list', 'fields', 'resume', 'task',
  'traceparent', 'created_ms', 'queued_ms', 'claimed_ms', 'attempt', 'claim_id', 'ordinal', 'events',
  'bytes', 'tokens', 'started', 'first_seq', 'worker', 'deadline_ms', 'cancelled', 'dispatches', 'restartable',
  'restarts', 'said', 'cut' }

local function get_run(run_id)
  return get(run_key(run_id), unpack(RUN_FIELDS))
end

-- Writes a run's end: terminal event, transcript, journal. `o` has kind, event, messages, role, out,
-- into, code. What the session does next is the caller's.
local function write_end(session, run_id, run, limits, o)
  local entries = {}
  if run.started == '' then
    entries[1] = begin_run(session, run_id, run, limits)
  end
  local said = o.messages or {}
  add_messages(run_id, said, limits)
  entries[#entries + 1] = emit(session.epoch, run_id, o.kind, o.event,
    { out = o.out, into = o.into, role = o.role, task = run.task, since = run.claimed_ms,
      code = header_word(o.code) })
  publish(entries)

  -- What remains is what a repeated call asks for; the log and the transcript have the rest.
  redis.call('HSET', run_key(run_id), 'status', 'done', 'kind', o.kind)
  redis.call('HDEL', run_key(run_id), 'messages', 'message_list', 'fields', 'resume')
  redis.call('PEXPIRE', run_key(run_id), AFTERLIFE_MS)
  clear_run_dues(run_id)
  local position = redis.call('HMGET', K.session, 'seq', 'log_bytes')
  redis.call('RPUSH', K.finished, position[1] .. ' ' .. position[2])
  trim_log(limits.log_bytes)
  journal_run(session, run_id, run, said, o)
end

-- Starts the session's next pending run and answers its id, or ''. One that was cancelled while it
-- waited ends here, in its turn, so that no two runs interleave; so does everything in a session that
-- is over.
local function next_run(session, limits)
  while true do
    local run_id = redis.call('LPOP', K.pending)
    if not run_id then
      clear_due('detach')
      return ''
    end
    local run = get_run(run_id)
    if run.cancelled == '' and session.state ~= 'ended' then
      return queue_run(run_id, limits)
    end
    write_end(session, run_id, run, limits,
      { kind = 'C', event = terminal_json(run_id, 'cancelled') })
  end
end

-- A new run ahead of the pending ones that answers what a lost one did not. It goes on counting its
-- attempts, so that what kills every worker is given up.
local function restart_run(session, run_id, run, limits, o)
  create_run(o.restart_as, session, { frame_id = '', messages = run.messages,
    message_list = run.message_list, fields = run.fields, resume = run.resume, task = run.task,
    traceparent = run.traceparent })
  redis.call('HSET', run_key(o.restart_as), 'attempt', run.attempt, 'restarts', run_id, 'said',
    (tonumber(run.said) or 0) + #o.messages)
  return queue_run(o.restart_as, limits)
end

-- What an agent is told: the transcript, the run's new messages last. What lost runs said to them
-- stands behind them in the transcript, and is left out.
local function conversation(run)
  if run.restarts == '' then
    return transcript(0)
  end
  local own = cjson.decode(run.message_list)
  local messages = transcript(tonumber(run.said) + #own)
  for _, message in ipairs(own) do
    messages[#messages + 1] = message
  end
  return messages
end

local function forget_input()
  redis.call('HDEL', K.session, 'interrupts', 'pending_tools')
  redis.call('DEL', K.tool_results)
  clear_due('input')
end

-- Forgets what awaits input; followers learn it from a notice in the log.
local function abandon_input(session, why)
  forget_input()
  redis.call('HSET', K.session, 'state', 'idle')
  publish({ emit(session.epoch, session.asked_by, 'N',
    '{"type":"CUSTOM","name":"nooble.input_closed","value":{"reason":"' .. why .. '"}}') })
end

-- Ends the open run and moves the session on: to its question, or to its next run, which is answered
-- (or ''), to be dispatched. `o` as for `write_end`, and interrupts, pending_tools, restart_as (the
-- id of a run that takes this one's place).
local function end_run(session, run_id, run, limits, o)
  write_end(session, run_id, run, limits, o)
  redis.call('HSET', K.session, 'open', '')
  if session.state == 'ended' then
    next_run(session, limits)
    retire_session(session)
    return ''
  end
  if o.restart_as then
    return restart_run(session, run_id, run, limits, o)
  end
  local interrupts = o.interrupts or ''
  local pending_tools = o.pending_tools or ''
  if (interrupts ~= '' or pending_tools ~= '') and run.status == 'cancelling' then
    session.asked_by = run_id
    abandon_input(session, 'abandoned')  -- it asked after it was told to stop
  elseif interrupts ~= '' or pending_tools ~= '' then
    redis.call('HSET', K.session, 'state', 'awaiting_input', 'interrupts', interrupts,
      'pending_tools', pending_tools, 'asked_by', run_id)
    set_due('input', '', now + limits.interrupt_ttl_ms)
    clear_due('detach')
    return ''
  end
  redis.call('HSET', K.session, 'state', 'idle')
  return next_run(session, limits)
end

-- Cancels the open run. Without a worker it ends here; with one it gets the grace.
local function cancel_open(session, limits)
  local run_id = session.open
  local run = get_run(run_id)
  if run.status == 'queued' then
    return end_run(session, run_id, run, limits,
      { kind = 'C', event = terminal_json(run_id, 'cancelled') })
  end
  if run.status == 'running' then
    redis.call('HSET', run_key(run_id), 'status', 'cancelling')
    if session.state ~= 'ended' then
      redis.call('HSET', K.session, 'state', 'cancelling')
    end
    set_due('grace', run_id, now + limits.cancel_grace_ms)
    redis.call('SPUBLISH', K.control, run_id)
  end
  return ''
end

-- What every command of a client begins with. Answers what the caller must return at once (a refusal,
-- or the answer that this frame id got before), or nil. `run_id` is the run that the call would make:
-- a known id with that very run is our own repetition after a lost answer, not the client's.
local function admit(session, limits, o)
  if session.user ~= o.user then
    return refuse('session_not_found', 'no such session')
  end
  detect_loss(session, o.seen_epoch, o.seen_seq, o.fresh_epoch)
  local known, conflict = known_id(o.frame_id, o.digest)
  if conflict then
    return conflict
  end
  if known then
    note_repetition()
    local status = known ~= '' and redis.call('HGET', run_key(known), 'status') or ''
    local answer = 'duplicate'
    if known ~= '' and known == o.run_id then
      answer = status == 'pending' and 'queued' or 'accepted'
    end
    return { answer, known, status == 'queued' and known or '', session.agent }
  end
  if session.state == 'ended' then
    return refuse('session_ended', 'this session is over')
  end
  if o.run_id == '' then
    return refuse('circuit_open', 'nothing new is accepted')
  end
  if journal_full(limits) then
    return refuse_full()
  end
end
