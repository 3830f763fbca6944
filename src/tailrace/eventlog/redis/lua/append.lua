-- Append one numbered call of one producer to one stream: all of it or nothing.
--
-- KEYS   1 events  2 meta  3 uids: only when some event has a uid
-- ARGV   1 producer id  2 its call number n, from 1  3 "short" where the short way may be tried, else "long"
--        4 MAXLEN  5 age limit in ms, or ""  6 PUBLISH or SPUBLISH
--        7 the rest, joined by blanks, "-" for none: "1" if this call may have been sent before, expected seq of the head,
--          owner's epoch, "1" to close the stream, hard cap of entries kept for a slow group, idle life in ms, life after
--          close in ms, how long meta stays longer in ms, "1" if XTRIM knows MINID (Redis 6.2), number of events,
--          what labels there are: "0" none, "1" some uid, "2" others
--        from 8, per event: type, data; where there are labels: shape, type, data, then by the bits of shape: 1 uid and
--        hash of the body, 2 key, 4 actor, 8 trace
-- reply  { "ok", ms, first seq, time, [ids when events have uids: "<id>" new, "=<id>" stored before] }
--        { "dup", ms, first seq, time or 0, [ids as above] }     this call was stored before
--        { "closed" } { "fenced", epoch } { "seq", seq } { "unknown" } { "conflict", index from 0 } { "missing" }
--        { "refused", error text }                               the server cannot write
--
-- Rules of this script (PROTOCOL.md §9)
-- 1. All reads and checks come before the first write, so nothing can fail half-way. The first write is an XADD, which
--    obeys maxmemory, read-only and min-replicas; where it is refused nothing is stored.
-- 2. A number once answered is answered again: the check for a repeated call comes before all others.
-- 3. Numbers are doubles here: exact up to 2^53. Ids beyond that are nobody's clock and are refused, never computed with.
-- 4. ARGV are strings: compare with "1".
-- 5. A key that is not there makes Cluster put a script off while its slot moves (TRYAGAIN), so `uids` is not declared by
--    calls that have no uid. They still try to keep its life in step; where that fails, its `@` tells that it is old.

local events, meta = KEYS[1], KEYS[2]
local uids = KEYS[3] or string.sub(meta, 1, -5) .. 'uids'
local producer, n = 'p:' .. ARGV[1], tonumber(ARGV[2])
local FIRST = 8
local PIDS, UIDS, PUSH_RECORD, PUSH_MESSAGE = 64, 1024, 32768, 1048576

local time = redis.call('TIME')
local now_text = time[1] .. string.sub('000000' .. time[2], -6, -4)
local m = redis.call('HMGET', meta, 'last', 'state', 'big', 'hold', 'renew', producer)

-- The short way, for nearly every call: the next one of a known producer to an open stream, without conditions and
-- labels, whose end of life need not be moved. It does what the long way does, in half the time. Where anything is
-- unusual it writes nothing and answers nothing. Numbers are kept as texts as far as possible: making a text of one
-- takes longer than a command.
local function append_next()
  local last, own = m[1], m[6]
  local dash = string.find(last, '-', 1, true)
  local ms, seq = string.sub(last, 1, dash - 1), tonumber(string.sub(last, dash + 1))
  if #ms ~= #now_text or seq > 1e13 or n <= tonumber(string.match(own, '^%d+')) then
    return nil
  end
  if ms < now_text then
    ms = now_text
  end
  local big = tonumber(m[3])
  local largest, prev, first_id, first_seq, single = big, last, nil, nil, #ARGV == FIRST + 1
  local message, message_bytes = { 't1\n' }, 0
  for a = FIRST, #ARGV, 2 do
    local kind, data = ARGV[a], ARGV[a + 1]
    seq = seq + 1
    local seq_text = seq .. ''
    local id = ms .. '-' .. seq_text
    if not first_id then
      local answer = redis.pcall('XADD', events, 'NOMKSTREAM', 'MAXLEN', '~', ARGV[4], id, 'v', '1', 'type', kind,
        'data', data, 'time', now_text, 'prev', prev)
      if answer ~= id then
        return nil
      end
      first_id, first_seq = id, seq_text
    else
      redis.call('XADD', events, 'MAXLEN', '~', ARGV[4], id, 'v', '1', 'type', kind, 'data', data, 'time', now_text,
        'prev', prev)
    end
    local size = #data + #kind + 64
    if size > largest then
      largest = size
    end
    local entry
    if size > PUSH_RECORD or message_bytes > PUSH_MESSAGE then
      entry = 'i\n' .. prev .. '\n' .. id
    else
      entry = 'r\n' .. prev .. '\n' .. id .. '\n' .. now_text .. '\n' .. kind .. '\n\n\n\n\n' .. data
    end
    if single then
      message = 't1\n' .. #entry .. '\n' .. entry
    else
      message[#message + 1] = #entry .. '\n' .. entry
      message_bytes = message_bytes + #entry
    end
    prev = id
  end
  own = ARGV[2] .. ' ' .. first_id .. ' ' .. prev .. ' ' .. now_text
  if largest > big then
    redis.call('HSET', meta, 'last', prev, producer, own, 'big', largest)
  else
    redis.call('HSET', meta, 'last', prev, producer, own)
  end
  if ARGV[5] ~= '' then
    redis.call('XTRIM', events, 'MINID', '~', string.format('%.0f', now_text - ARGV[5]))
  end
  redis.pcall(ARGV[6], string.sub(meta, 1, -5) .. 'push', single and message or table.concat(message))
  return { 'ok', ms, first_seq, now_text }
end

if ARGV[3] == 'short' and m[6] and m[2] == 'open' and not m[4] and not (m[5] and m[5] <= now_text) then
  local answer = append_next()
  if answer then
    return answer
  end
end

local rest = {}
for word in string.gmatch(ARGV[7], '%S+') do
  rest[#rest + 1] = word ~= '-' and word or ''
end
local maybe_sent, expected, epoch, closing = rest[1] == '1', rest[2], rest[3], rest[4] == '1'
local cap, idle_life, closed_life, tombstone = tonumber(rest[5]), rest[6], rest[7], tonumber(rest[8])
local knows_minid, count, with_uids, plain = rest[9] == '1', tonumber(rest[10]), rest[11] == '1', rest[11] == '0'
local now = tonumber(now_text)
local more = redis.call('HMGET', meta, 'inc', 'exp', 'epoch', 'pev')
m = { last = m[1], state = m[2], big = m[3], hold = m[4], renew = m[5], own = m[6], inc = more[1], exp = more[2],
  epoch = more[3], pev = more[4] }

local function text(number)
  return string.format('%.0f', number)
end

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if #ms > 15 or #seq > 15 then
    return nil
  end
  return tonumber(ms), tonumber(seq)
end

-- Calls f(index, shape, type, data, uid, hash, key, actor, trace) for each event, until it answers something.
local function each(f)
  local a = FIRST
  for i = 1, count do
    local shape = plain and '0' or ARGV[a]
    if not plain then
      a = a + 1
    end
    local kind, data = ARGV[a], ARGV[a + 1]
    a = a + 2
    local uid, hash, key, actor, trace = '', '', '', '', ''
    if shape ~= '0' then
      local bits = tonumber(shape)
      if bit.band(bits, 1) ~= 0 then
        uid, hash = ARGV[a], ARGV[a + 1]
        a = a + 2
      end
      if bit.band(bits, 2) ~= 0 then
        key = ARGV[a]
        a = a + 1
      end
      if bit.band(bits, 4) ~= 0 then
        actor = ARGV[a]
        a = a + 1
      end
      if bit.band(bits, 8) ~= 0 then
        trace = ARGV[a]
        a = a + 1
      end
    end
    local answer = f(i, shape, kind, data, uid, hash, key, actor, trace)
    if answer then
      return answer
    end
  end
end

-- 1. A call that was stored before.
if m.own then
  local stored, first, last, then_at = string.match(m.own, '^(%d+) (%S+) (%S+) ?(%d*)$')
  if n <= tonumber(stored) then
    local ms, seq = parts(first)
    local ids = {}
    if with_uids then
      local next_seq, _, last_seq = seq, parts(last)
      each(function(i, shape, kind, data, uid)
        local known = uid ~= '' and redis.call('HGET', uids, '=' .. uid)
        local id = known and string.match(known, '^%S+ (%S+)')
        local id_ms, id_seq
        if id then
          id_ms, id_seq = parts(id)
        end
        if id and not (id_ms == ms and id_seq >= seq and id_seq <= last_seq) then
          ids[i] = '=' .. id
        elseif id and id_seq < next_seq then
          ids[i] = '=' .. id
        else
          ids[i] = text(ms) .. '-' .. text(next_seq)
          next_seq = next_seq + 1
        end
      end)
    end
    return { 'dup', text(ms), text(seq), then_at ~= '' and then_at or '0', ids }
  end
elseif m.pev and m.pev ~= '0' and (n > 1 or maybe_sent) then
  return { 'unknown' }
end

-- 2. Is this the history that meta tells of, or does a new one begin?
local last, state, incarnation = m.last, m.state, tonumber(m.inc or '0')
local base, why = false, false
local last_ms, last_seq = 0, 0
local fresh = false
local function generated()
  local info = redis.pcall('XINFO', 'STREAM', events)
  for i = 1, info.err and 0 or #info, 2 do
    if info[i] == 'last-generated-id' then
      return info[i + 1]
    end
  end
end
if last then
  last_ms, last_seq = parts(last)
  if state == 'deleted' or redis.call('EXISTS', events) == 0 then
    fresh, base = true, last
    why = (state ~= 'deleted' and m.exp and tonumber(m.exp) <= now + 1000) and 'expired' or 'deleted'
  end
else
  fresh = true
  local existing = generated()
  if existing and existing ~= '0-0' then
    -- Foreign entries, or ours after meta was lost: nobody knows the count.
    base, why = existing, 'reset'
    last_ms = parts(existing)
  end
end
if not last_ms then
  return { 'refused', 'IDSPACE the stream holds an id that is no time' }
end
local remaining = -2
if fresh then
  -- What others gave a life to keeps it.
  remaining = redis.call('PTTL', events)
  last_seq = 0
  if count == 0 then
    return { 'missing' }
  end
elseif state == 'closed' then
  return { 'closed' }
end

-- 3. What the caller demands.
if epoch ~= '' and m.epoch and tonumber(epoch) < tonumber(m.epoch) then
  return { 'fenced', m.epoch }
end
if expected ~= '' and tonumber(expected) ~= last_seq then
  return { 'seq', text(last_seq) }
end
local ids, uid_next = false, 0
if with_uids then
  ids = {}
  local mine = {}
  local ring = redis.call('HMGET', uids, '#', '@')
  local current = not fresh and ring[2] == text(incarnation)
  uid_next = current and tonumber(ring[1]) or 0
  local refused = each(function(i, shape, kind, data, uid, hash)
    if uid ~= '' then
      local known = mine[uid] or (current and redis.call('HGET', uids, '=' .. uid))
      if not known then
        mine[uid] = hash .. ' ' .. i
      elseif string.sub(known, 1, #hash + 1) ~= hash .. ' ' then
        return { 'conflict', i - 1 }
      else
        ids[i] = '=' .. string.sub(known, #hash + 2)
      end
    end
  end)
  if refused then
    return refused
  end
end

-- 4. Write. Nothing before this line has changed anything.
local ms = math.max(now, last_ms)
if fresh and base then
  ms = math.max(now, last_ms + 1)
end
local maxlen = tonumber(ARGV[4])
local hole = false
if m.hold then
  -- seq counts records, so this many are not yet done by the slowest group.
  local hold_ms, hold_seq = parts(m.hold)
  local waiting = (fresh or not hold_ms) and last_seq or math.max(0, last_seq - hold_seq)
  hole = waiting + count > cap
  maxlen = math.max(maxlen, math.min(cap, waiting + count))
end
local time_text, ms_text = now_text, text(ms)
local seq, prev = last_seq, (fresh or not last) and '0-0' or last
local first_seq, first_id, refused = false, false, false
local largest, message, message_bytes = tonumber(m.big or '0'), { 't1\n' }, 0
local uid_writes = {}

local function add(id, shape, kind, data, uid, key, actor, trace)
  if shape == '0' then
    return redis.pcall('XADD', events, id, 'v', '1', 'type', kind, 'data', data, 'time', time_text, 'prev', prev)
  end
  local args = { 'XADD', events, id, 'v', '1', 'type', kind, 'data', data, 'time', time_text, 'prev', prev }
  local optional = { 'uid', uid, 'key', key, 'actor', actor, 'trace', trace }
  for i = 1, 8, 2 do
    if optional[i + 1] ~= '' then
      args[#args + 1] = optional[i]
      args[#args + 1] = optional[i + 1]
    end
  end
  return redis.pcall(unpack(args))
end

-- The first XADD may find an id that somebody else added: then the ids go on behind it.
local function add_first(shape, kind, data, uid, key, actor, trace)
  local id = ms_text .. '-' .. text(seq)
  local answer = add(id, shape, kind, data, uid, key, actor, trace)
  if type(answer) == 'table' and answer.err and string.find(answer.err, 'equal or smaller', 1, true) then
    local top = generated()
    local top_ms, top_seq = parts(top or '0-0')
    if not top_ms then
      return { err = 'IDSPACE the stream holds an id that is no time' }
    end
    ms = (fresh or top_seq >= seq) and top_ms + 1 or top_ms
    ms_text = text(ms)
    answer = add(ms_text .. '-' .. text(seq), shape, kind, data, uid, key, actor, trace)
  end
  return answer
end

each(function(i, shape, kind, data, uid, hash, key, actor, trace)
  if ids and ids[i] then
    return
  end
  seq = seq + 1
  if not first_seq then
    local answer = add_first(shape, kind, data, uid, key, actor, trace)
    if type(answer) == 'table' then
      refused = answer.err or 'ERR'
      return true
    end
    first_seq = seq
    first_id = ms_text .. '-' .. text(seq)
  else
    add(ms_text .. '-' .. text(seq), shape, kind, data, uid, key, actor, trace)
  end
  local id = ms_text .. '-' .. text(seq)
  local size = #data + #kind + #uid + #key + #actor + #trace + 64
  if size > largest then
    largest = size
  end
  local entry
  if size > PUSH_RECORD or message_bytes > PUSH_MESSAGE then
    entry = 'i\n' .. prev .. '\n' .. id
  else
    entry = 'r\n' .. prev .. '\n' .. id .. '\n' .. time_text .. '\n' .. kind .. '\n' .. uid .. '\n' .. key .. '\n'
      .. actor .. '\n' .. trace .. '\n' .. data
  end
  message[#message + 1] = #entry .. '\n' .. entry
  message_bytes = message_bytes + #entry
  if ids then
    ids[i] = id
    if uid ~= '' then
      uid_writes[#uid_writes + 1] = { uid, hash .. ' ' .. id }
    end
  end
  prev = id
end)
if refused then
  return { 'refused', refused }
end
if ids then
  -- A uid twice in one call: the second is the first one's record.
  for i = 1, count do
    local nth = string.match(ids[i], '^=(%d+)$')
    if nth then
      ids[i] = '=' .. ids[tonumber(nth)]
    end
  end
end

local stored = first_seq ~= false
if not stored and not closing then
  -- Every event was stored before, under its uid.
  return { 'ok', '0', '0', time_text, ids }
end
local fields = { 'HSET', meta, 'last', prev, 'big', text(largest) }
local function set(name, value)
  fields[#fields + 1] = name
  fields[#fields + 1] = value
end
local life = false
if fresh then
  redis.pcall('DEL', uids)
  redis.call('HDEL', meta, 'exp', 'renew', 'base', 'why', 'hole')
  incarnation = incarnation + 1
  set('inc', text(incarnation))
  if base then
    set('base', base)
    set('why', why)
  end
  if idle_life == '' then
    redis.call('PERSIST', meta)
  end
end
if fresh or closing then
  set('state', closing and 'closed' or 'open')
end
if closing and closed_life ~= '' then
  life = tonumber(closed_life)
else
  local own_life = not fresh and m.renew and string.match(m.renew, ' (%d+)$')
  local idle = tonumber(own_life or idle_life)
  if idle and (fresh or not m.exp or tonumber(m.exp) < now + idle) then
    -- A little more than asked, so that not every append has to say it again.
    local more_life = math.ceil(idle / 64)
    life = idle + more_life
    if own_life then
      set('renew', text(now + more_life) .. ' ' .. own_life)
    end
  end
end
if not life and remaining > 0 then
  life = remaining
end
if life then
  set('exp', text(now + life))
end
if epoch ~= '' and (not m.epoch or tonumber(epoch) > tonumber(m.epoch)) then
  set('epoch', epoch)
end
if hole and m.hold then
  set('hole', m.hold)
end
if not m.own and redis.call('HLEN', meta) >= PIDS then
  -- A producer more than we keep: the one whose last call is oldest goes.
  local all = redis.call('HGETALL', meta)
  local oldest, oldest_ms, known = nil, nil, 0
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'p:' then
      known = known + 1
      local at = tonumber(string.match(all[i + 1], '^%d+ (%d+)')) or 0
      if not oldest_ms or at < oldest_ms then
        oldest, oldest_ms = all[i], at
      end
    end
  end
  if known >= PIDS then
    redis.call('HDEL', meta, oldest)
    redis.call('HINCRBY', meta, 'pev', 1)
  end
end
set(producer, ARGV[2] .. ' ' .. (first_id or prev) .. ' ' .. prev .. ' ' .. time_text)
redis.call(unpack(fields))

if #uid_writes > 0 and uid_next == 0 then
  redis.call('DEL', uids)
end
for i = 1, #uid_writes do
  local slot = '#' .. (uid_next % UIDS)
  local old = uid_next >= UIDS and redis.call('HGET', uids, slot)
  if old then
    redis.call('HDEL', uids, '=' .. old)
  end
  redis.call('HSET', uids, '=' .. uid_writes[i][1], uid_writes[i][2], slot, uid_writes[i][1])
  uid_next = uid_next + 1
end
if #uid_writes > 0 then
  redis.call('HSET', uids, '#', uid_next, '@', text(incarnation))
end

local exp = life and text(now + life) or (not fresh and m.exp)
if life then
  redis.call('PEXPIREAT', events, exp)
  redis.call('PEXPIREAT', meta, text(tonumber(exp) + tombstone))
end
-- An end that has passed is the end of entries that are gone: foreign ones came since and have none.
if exp and (life or (#uid_writes > 0 and tonumber(exp) > now)) then
  redis.pcall('PEXPIREAT', uids, exp)
end

-- 5. Retention. Group positions (`hold`) are respected up to the hard cap.
if stored then
  redis.call('XTRIM', events, 'MAXLEN', '~', text(maxlen))
  if ARGV[5] ~= '' then
    local oldest = now - tonumber(ARGV[5])
    local hold_ms = m.hold and not fresh and parts(m.hold) or nil
    if hold_ms and hold_ms < oldest then
      oldest = hold_ms
    end
    if knows_minid then
      redis.call('XTRIM', events, 'MINID', '~', text(oldest))
    elseif oldest > 0 then
      local old = redis.call('XRANGE', events, '-', text(oldest - 1), 'COUNT', 100)
      for i = 1, #old do
        redis.call('XDEL', events, old[i][1])
      end
    end
  end
end

-- 6. Push. A failing PUBLISH fails nothing: the log has the records, and readers ask.
if closing then
  local entry = 's\n' .. prev .. '\nclosed'
  message[#message + 1] = #entry .. '\n' .. entry
end
redis.pcall(ARGV[6], string.sub(meta, 1, -5) .. 'push', table.concat(message))
return { 'ok', ms_text, text(first_seq or 0), time_text, ids }
