-- Where a stream ends, and more for operators. Reads only.
--
-- KEYS   1 events  2 meta
-- ARGV   1 "1": also length, first id, remaining life in ms (-1: for ever, -2: not there) and memory in bytes
-- reply  { head }  or  { head, length, first id or nil, ttl ms, memory or nil }

local h, exists = head(KEYS[1], KEYS[2])
if ARGV[1] ~= '1' then
  return { h }
end
if exists == 0 then
  return { h, 0, false, -2, false }
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local memory = redis.pcall('MEMORY', 'USAGE', KEYS[1])
if type(memory) ~= 'number' then
  memory = false
end
return { h, redis.call('XLEN', KEYS[1]), first and first[1] or false, redis.call('PTTL', KEYS[1]), memory }
