-- Shared by the scripts that describe, read and manage (scripts.py puts it in front of them).
--
-- head(events, meta) answers where a stream ends, as PROTOCOL.md §9 reads its meta hash:
--   { last id, state, incarnation, base id, why, largest }, all strings, and whether its entries exist (1 or 0).
-- A stream whose entries are gone while meta stays is expired when its `exp` has passed, otherwise deleted.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function head(events, meta)
  local m = redis.call('HMGET', meta, 'last', 'state', 'inc', 'base', 'why', 'big', 'exp')
  local exists = redis.call('EXISTS', events)
  local state = m[2]
  if exists == 1 then
    if not state or state == 'deleted' then
      state = 'open'
    end
  elseif not m[1] then
    state = 'missing'
  elseif state ~= 'deleted' then
    -- The entries can vanish a moment before TIME says so: the server's clock for expiry is its own.
    if m[7] and tonumber(m[7]) <= now_ms() + 1000 then
      state = 'expired'
    else
      state = 'deleted'
    end
  end
  return { m[1] or '0-0', state, m[3] or '0', m[4] or '0-0', m[5] or '', m[6] or '0' }, exists
end

-- Tell those who listen that the state changed (PROTOCOL.md §9, push message). A failing PUBLISH fails nothing.
local function publish_state(command, meta, last, state)
  local entry = 's\n' .. last .. '\n' .. state
  redis.pcall(command, string.sub(meta, 1, -5) .. 'push', 't1\n' .. #entry .. '\n' .. entry)
end
