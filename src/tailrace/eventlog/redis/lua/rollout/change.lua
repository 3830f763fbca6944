-- Change one kind's rollout, if it is still what the caller saw, and remember the change.
-- KEYS[1] hash: as look.lua      KEYS[2] hash: number -> JSON, the last changes
-- ARGV 1 kind  2 what the caller saw ("": nothing)  3 what it shall be  4 the change  5 its time, ms  6 how old that
--      may be, ms  7 how many changes are kept  8 "1": a roll-back, which a full server must not stop
-- Answers { "stored", number }, { "changed" } (look again), { "late" } (again, with the time now) or { "forced" }.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local field = 'k:' .. ARGV[1]
local found = redis.call('HGET', KEYS[1], field) or ''
if found == ARGV[3] then
  return { 'stored', tonumber(redis.call('HGET', KEYS[1], 'version')) }
end
if found ~= ARGV[2] then
  return { 'changed' }
end
if now - tonumber(ARGV[5]) > tonumber(ARGV[6]) then
  return { 'late' }
end
local stored = redis.pcall('HSET', KEYS[1], field, ARGV[3], 'm:' .. ARGV[1], '1')
if type(stored) == 'table' and stored.err then
  if ARGV[8] ~= '1' then
    return stored
  end
  -- A server without memory refuses HSET and takes HDEL; a kind with `m:` alone is on Pub/Sub.
  redis.call('HDEL', KEYS[1], field)
  return { 'forced' }
end
local number = redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('HSET', KEYS[2], number, ARGV[4])
redis.call('HDEL', KEYS[2], number - ARGV[7])
return { 'stored', number }
