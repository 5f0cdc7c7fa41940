-- Shared by every session script: it stands ahead of each of them (see scripts.py).
--
-- KEYS[1] is always the session's hash, `s:{pN}:tenant:session`. All other names are derived from
-- it and carry the same hash tag, so a script touches one slot; the `#!lua` line makes Cluster
-- reject the call if it ever did not.
--
-- A refusal is returned as {'!code', message}; Python raises it. Times are Redis's own, in ms.

local base = string.sub(KEYS[1], 3)
local tag = string.match(base, '^%b{}')
local ident = string.sub(base, #tag + 2)

local K = {
  session = KEYS[1],
  log = 'l:' .. base,
  transcript = 't:' .. base,
  pending = 'w:' .. base,
  ids = 'i:' .. base,
  id_runs = 'd:' .. base,
  finished = 'f:' .. base,
  tool_results = 'x:' .. base,
  expired = 'z:' .. base,
  events = 'e:' .. base,
  control = 'c:' .. base,
  due = 'due:' .. tag,
  journal = 'j:' .. tag,
}

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Lua 5.1 prints large numbers in scientific notation.
local function int(n)
  return string.format('%.0f', n)
end

local function refuse(code, message)
  return { '!' .. code, message or '' }
end

local function run_key(run_id)
  return 'r:' .. base .. ':' .. run_id
end

local function get(key, ...)
  local names = { ... }
  local values = redis.call('HMGET', key, unpack(names))
  local out = {}
  for i, name in ipairs(names) do
    out[name] = values[i] or ''
  end
  return out
end

-- Deadlines -----------------------------------------------------------------------------------

local function due_member(kind, run_id)
  return kind .. '|' .. ident .. '|' .. (run_id or '')
end

local function set_due(kind, run_id, at_ms)
  redis.call('ZADD', K.due, int(at_ms), due_member(kind, run_id))
end

local function clear_due(kind, run_id)
  redis.call('ZREM', K.due, due_member(kind, run_id))
end

-- When the session's runs are cancelled because no client is there: after the grace, and the time
-- within which every node that has clients says so. `mode` is ZADD's: NX when a run is queued, XX
-- when a node says so.
local function set_detach_due(limits, mode)
  redis.call('ZADD', K.due, mode, int(now + limits.resume_grace_ms * 4 / 3), due_member('detach'))
end

-- Every deadline that a run may have.
local RUN_DUES = { 'dispatch', 'wait', 'lease', 'timeout', 'grace', 'home' }

local function clear_run_dues(run_id)
  for _, kind in ipairs(RUN_DUES) do
    clear_due(kind, run_id)
  end
end

-- The log -------------------------------------------------------------------------------------

local function publish(entries)
  redis.call('SPUBLISH', K.events, table.concat(entries, '\n'))
end

local function begin_epoch(session, fresh_epoch)
  session.epoch = fresh_epoch
  redis.call('HSET', K.session, 'epoch', fresh_epoch)
  redis.call('SPUBLISH', K.events, '!reset ' .. fresh_epoch)
end

-- A tail below what somebody has seen means that Redis lost writes: a new epoch begins, and
-- followers are told. `session` is brought up to date.
local function detect_loss(session, seen_epoch, seen_seq, fresh_epoch)
  if seen_epoch ~= session.epoch or tonumber(seen_seq) <= tonumber(session.seq) then
    return false
  end
  begin_epoch(session, fresh_epoch)
  return true
end

-- What an agent chose, as one word of a header.
local function header_word(text)
  return text and string.match(text, '^[%w_.:-]+$') or '-'
end

-- Refuses a worker. One that holds a later attempt than is known here, or has appended more, proves
-- that Redis lost writes: a new epoch begins, since nobody else may have seen them.
local function fence(session, run, attempt, ordinal)
  local known = tonumber(run.attempt)
  if known and (known < tonumber(attempt)
    or (known == tonumber(attempt) and tonumber(run.ordinal) < tonumber(ordinal))) then
    begin_epoch(session, 'w' .. int(now))
  end
  return refuse('fenced')
end

-- Appends one event; `o` has out, into, role, task, claimed, code where they apply. Answers the entry
-- (header LF frame), which the caller publishes.
local function emit(epoch, run_id, kind, event, o)
  o = o or {}
  local seq = int(redis.call('HINCRBY', K.session, 'seq', 1))
  local entry = table.concat({
    seq, epoch, run_id, kind, int(now), o.out or '0', o.into or '0', o.role or '-', o.task or '-',
    o.claimed and o.claimed ~= '' and o.claimed or '0', o.code or '-',
  }, ' ') .. '\n{"type":"event","seq":' .. seq .. ',"ts":' .. int(now) .. ',"run_id":"' .. run_id
    .. '","event":' .. event .. '}'
  redis.call('XADD', K.log, seq .. '-0', 'e', entry)
  redis.call('HINCRBY', K.session, 'log_bytes', #entry)
  return entry
end

-- Whole finished runs (and notices before them) leave the log, oldest first, while it is larger than
-- its bound. The newest stays whatever its size, for clients that are just behind. `log_bytes` counts
-- all that was ever written, `trimmed_bytes` what has left.
local function trim_log(max_bytes)
  local sizes = redis.call('HMGET', K.session, 'log_bytes', 'trimmed_bytes')
  local written, left = tonumber(sizes[1]), tonumber(sizes[2])
  while written - left > max_bytes and redis.call('LLEN', K.finished) > 1 do
    local last_seq, bytes = string.match(redis.call('LPOP', K.finished), '^(%d+) (%d+)$')
    left = tonumber(bytes)
    redis.call('XTRIM', K.log, 'MINID', int(tonumber(last_seq) + 1) .. '-0')
    redis.call('HSET', K.session, 'trimmed', last_seq, 'trimmed_bytes', bytes)
  end
end

-- The transcript ------------------------------------------------------------------------------

local function add_messages(messages, max_count, max_bytes)
  local added = 0
  for _, message in ipairs(messages) do
    redis.call('RPUSH', K.transcript, message)
    added = added + #message
  end
  local bytes = redis.call('HINCRBY', K.session, 'transcript_bytes', added)
  local count = redis.call('LLEN', K.transcript)
  while count > 1 and (count > max_count or bytes > max_bytes) do
    bytes = redis.call('HINCRBY', K.session, 'transcript_bytes',
      -#redis.call('LPOP', K.transcript))
    count = count - 1
  end
end

-- Message ids ---------------------------------------------------------------------------------

-- The run that this id made, nil for a new id, or '' with a refusal for another body.
local function known_id(frame_id, digest)
  local value = redis.call('HGET', K.id_runs, frame_id)
  if not value then
    return nil
  end
  local run_id, known_digest = string.match(value, '^(%S*) (%S+)$')
  if known_digest ~= digest then
    return nil, refuse('id_conflict', 'this id was used with another content')
  end
  return run_id
end

local function remember_id(frame_id, digest, run_id, limits)
  redis.call('HSET', K.id_runs, frame_id, run_id .. ' ' .. digest)
  redis.call('ZADD', K.ids, int(now), frame_id)
  local old = redis.call('ZRANGEBYSCORE', K.ids, '-inf', int(now - limits.message_id_ttl_ms),
    'LIMIT', 0, 100)
  if #old == 0 and redis.call('ZCARD', K.ids) > limits.message_ids then
    old = redis.call('ZRANGE', K.ids, 0, 0)
  end
  if #old > 0 then
    redis.call('ZREM', K.ids, unpack(old))
    redis.call('HDEL', K.id_runs, unpack(old))
  end
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
local function begin_run(session, run_id, run, limits)
  local parent = ''
  if run.restarts ~= '' then
    parent = '","parentRunId":"' .. run.restarts
  elseif run.messages ~= '' then
    add_messages(cjson.decode(run.message_list), limits.transcript_messages,
      limits.transcript_bytes)
  end
  local entry = emit(session.epoch, run_id, 'S', '{"type":"RUN_STARTED","threadId":"'
    .. string.match(ident, ':(.+)$') .. '","runId":"' .. run_id .. parent .. '","input":'
    .. run_input(run_id, run) .. '}', { task = run.task })
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
    'attempt', 0, 'ordinal', 0, 'events', 0, 'bytes', 0, 'tokens', 0)
end

-- How long the keys of something that is over stay, so that repeated calls and late clients still
-- get the right answer.
local AFTERLIFE_MS = 3600 * 1000

local function retire_session()
  redis.call('SPUBLISH', K.events, '!ended')
  redis.call('ZREM', K.due, due_member('expiry'), due_member('input'), due_member('detach'))
  for _, name in ipairs({ 'session', 'log', 'transcript', 'pending', 'ids', 'id_runs', 'finished',
    'tool_results' }) do
    redis.call('PEXPIRE', K[name], AFTERLIFE_MS)
  end
end

local RUN_FIELDS = { 'status', 'agent', 'messages', 'message_list', 'fields', 'resume', 'task',
  'traceparent', 'created_ms', 'claimed_ms', 'attempt', 'ordinal', 'events', 'bytes', 'tokens',
  'started', 'first_seq', 'worker', 'deadline_ms', 'cancelled', 'dispatches', 'restartable',
  'restarts', 'said', 'cut' }

local function get_run(run_id)
  return get(run_key(run_id), unpack(RUN_FIELDS))
end

-- Writes a run's end: terminal event, transcript, journal. `o` has kind, event, messages, out, into,
-- code. What the session does next is the caller's.
local function write_end(session, run_id, run, limits, o)
  local entries = {}
  if run.started == '' then
    entries[1] = begin_run(session, run_id, run, limits)
  end
  local said = o.messages or {}
  add_messages(said, limits.transcript_messages, limits.transcript_bytes)
  local role = '-'
  for _, message in ipairs(said) do
    if cjson.decode(message).role == 'assistant' then
      role = 'assistant'
    end
  end
  entries[#entries + 1] = emit(session.epoch, run_id, o.kind, o.event,
    { out = o.out, into = o.into, role = role, task = run.task, claimed = run.claimed_ms,
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
  redis.call('XADD', K.journal, 'MAXLEN', '~', int(limits.journal_entries), '*',
    'session', ident, 'run', run_id, 'agent', session.agent, 'user', session.user, 'kind', o.kind,
    'code', o.code or '', 'task', run.task, 'created_ms', run.created_ms, 'claimed_ms',
    run.claimed_ms, 'ended_ms', int(now), 'asked', '[' .. run.messages .. ']', 'said',
    '[' .. table.concat(said, ',') .. ']', 'event', o.event)
end

local function get_session()
  return get(K.session, 'user', 'agent', 'epoch', 'seq', 'state', 'open', 'home', 'created_ms',
    'interrupts', 'pending_tools', 'asked_by', 'shared_state', 'metadata', 'trimmed', 'on_detach',
    'home_seq', 'made_by')
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
    return redis.call('LRANGE', K.transcript, 0, -1)
  end
  local own = cjson.decode(run.message_list)
  local messages = redis.call('LRANGE', K.transcript, 0, -1 - tonumber(run.said) - #own)
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

-- WAIT speaks of the writes of its own connection, and a repeated call has nothing to write. With
-- this it stands behind what the first call wrote, on another connection perhaps.
local function note_repetition()
  redis.call('HSET', K.session, 'repeated_ms', int(now))
end

-- Ends the open run and moves the session on: to its question, or to its next run, which is answered
-- (or ''), to be dispatched. `o` as for `write_end`, and interrupts, pending_tools, restart_as (the
-- id of a run that takes this one's place).
local function end_run(session, run_id, run, limits, o)
  write_end(session, run_id, run, limits, o)
  redis.call('HSET', K.session, 'open', '')
  if session.state == 'ended' then
    next_run(session, limits)
    retire_session()
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
local function admit(session, o)
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
end

-- The bounds travel with the call as one JSON object: scripts have no configuration of their own.
local function limits_of(json)
  return cjson.decode(json)
end
