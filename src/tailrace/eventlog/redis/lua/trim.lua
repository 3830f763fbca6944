-- Keep the newest records of a stream, and everything that the slowest group still needs.
--
-- KEYS   1 events  2 meta
-- ARGV   1 how many
-- reply  how many were removed

local keep = tonumber(ARGV[1])
local m = redis.call('HMGET', KEYS[2], 'last', 'hold')
if m[1] and m[2] then
  -- seq counts records; of another incarnation it says nothing, and then nothing is removed.
  local last_ms, last_seq = string.match(m[1], '^(%d+)-(%d+)$')
  local hold_ms, hold_seq = string.match(m[2], '^(%d+)-(%d+)$')
  if not hold_seq or #hold_seq > 15 or tonumber(hold_seq) > tonumber(last_seq) then
    return 0
  end
  keep = math.max(keep, tonumber(last_seq) - tonumber(hold_seq))
end
return redis.call('XTRIM', KEYS[1], 'MAXLEN', string.format('%.0f', keep))
