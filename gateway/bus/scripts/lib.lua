-- Shared by every session script: it stands ahead of each of them, and journal.lua and runs.lua
-- behind it (see scripts.py).
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
  tombstone = 'z:' .. base,
  events = 'e:' .. base,
  control = 'c:' .. base,
  due = 'due:' .. tag,
  journal = 'j:' .. tag,
  journal_bytes = 'jb:' .. tag,
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

local function get_session()
  return get(K.session, 'user', 'agent', 'epoch', 'seq', 'state', 'open', 'home', 'created_ms',
    'interrupts', 'pending_tools', 'asked_by', 'shared_state', 'metadata', 'trimmed', 'on_detach',
    'home_seq', 'made_by', 'last_end_ms', 'journal_id')
end

-- The bounds travel with the call as one JSON object: scripts have no configuration of their own.
local function limits_of(json)
  return cjson.decode(json)
end

-- How long the keys of something that is over stay, so that repeated calls and late clients still
-- get the right answer.
local AFTERLIFE_MS = 3600 * 1000

local SESSION_KEYS = { K.session, K.log, K.transcript, K.pending, K.ids, K.id_runs, K.finished,
  K.tool_results }

-- The sessions of a user in this partition, by when they are forgotten: `inf` while they live.
local function index_session(user, until_ms)
  local tenant, session_id = string.match(ident, '^(.-):(.*)$')
  local users = 'u:' .. tag .. ':' .. tenant .. ':' .. user
  redis.call('ZREMRANGEBYSCORE', users, '-inf', int(now))
  if until_ms == '' then
    redis.call('ZREM', users, session_id)
  else
    redis.call('ZADD', users, until_ms, session_id)
  end
  local last_ms = redis.call('ZRANGE', users, -1, -1, 'WITHSCORES')[2]
  if last_ms == 'inf' then
    redis.call('PERSIST', users)
  elseif last_ms then
    redis.call('PEXPIREAT', users, int(last_ms))
  end
end

-- Nothing is left of the session but a tombstone, where there is one.
local function forget_session(user)
  index_session(user, '')
  redis.call('DEL', unpack(SESSION_KEYS))
end

-- What a call that ended a session is answered once it was erased: as in close.lua. Nil where this
-- user has not erased it.
local function erased(user, call_id)
  local it = get(K.tombstone, 'erased', 'user', 'by', 'agent', 'created_ms', 'at_ms')
  if it.erased == '' or it.user ~= user then
    return nil
  end
  redis.call('HSET', K.tombstone, 'repeated_ms', int(now))
  return { it.by == call_id and 1 or 0, it.agent, tonumber(it.created_ms) or 0,
    tonumber(it.at_ms) or 0 }
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

-- A claim's id is its attempt and its time: after Redis lost a claim, the next one has the attempt's
-- number again, and must not be taken for the lost one.
local function new_claim_id(attempt)
  return attempt .. '@' .. int(now)
end

-- Refuses a worker. One that holds a later attempt than is known here, or the same by another claim,
-- or has appended more, proves that Redis lost writes: a new epoch begins, since nobody else may have
-- seen them.
local function fence(session, run, claim_id, ordinal)
  local known, attempt = tonumber(run.attempt), tonumber(string.match(claim_id, '^%d+'))
  if known and attempt and (known < attempt or (known == attempt
    and (run.claim_id ~= claim_id or tonumber(run.ordinal) < tonumber(ordinal)))) then
    begin_epoch(session, 'w' .. int(now))
  end
  return refuse('fenced')
end

-- Appends one event; `o` has out, into, role, task, since, code where they apply. Answers the entry
-- (header LF frame), which the caller publishes.
local function emit(epoch, run_id, kind, event, o)
  o = o or {}
  local seq = int(redis.call('HINCRBY', K.session, 'seq', 1))
  local entry = table.concat({
    seq, epoch, run_id, kind, int(now), o.out or '0', o.into or '0', o.role or '-', o.task or '-',
    o.since and o.since ~= '' and o.since or '0', o.code or '-',
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
  local CHUNK = 32
  local sizes = redis.call('HMGET', K.session, 'log_bytes', 'trimmed_bytes')
  local written, left = tonumber(sizes[1]), tonumber(sizes[2])
  local most = redis.call('LLEN', K.finished) - 1
  local count, ends, last_seq, bytes = 0, nil, nil, nil
  while written - left > max_bytes and count < most do
    if count % CHUNK == 0 then
      ends = redis.call('LRANGE', K.finished, count, count + CHUNK - 1)
    end
    last_seq, bytes = string.match(ends[count % CHUNK + 1], '^(%d+) (%d+)$')
    left, count = tonumber(bytes), count + 1
  end
  if count > 0 then
    redis.call('LTRIM', K.finished, count, -1)
    redis.call('XTRIM', K.log, 'MINID', int(tonumber(last_seq) + 1) .. '-0')
    redis.call('HSET', K.session, 'trimmed', last_seq, 'trimmed_bytes', bytes)
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

-- WAIT speaks of the writes of its own connection, and a repeated call has nothing to write. With
-- this it stands behind what the first call wrote, on another connection perhaps.
local function note_repetition()
  redis.call('HSET', K.session, 'repeated_ms', int(now))
end
