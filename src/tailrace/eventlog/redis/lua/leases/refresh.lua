-- Keep a seat. KEYS as in admit.lua. ARGV 1 member  2 nonce  3 seat ms
-- Answers 1, or 0 when another connection has it. A seat that the server forgot is taken again.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local evicted = redis.call('ZSCORE', KEYS[2], 'n:' .. ARGV[2])
if evicted and tonumber(evicted) > now then
  return 0
end
local opened = string.format('%.0f', clock[1] * 1000000 + clock[2])
local seat = redis.call('HGET', KEYS[1], ARGV[1])
if seat then
  local nonce, since, till = string.match(seat, '^([^|]*)|(%d+)|(%d+)$')
  if nonce == ARGV[2] then
    opened = since
  elseif nonce and tonumber(till) > now then
    return 0
  end
end
local till = string.format('%.0f', now + tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. '|' .. opened .. '|' .. till)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
