-- Take a seat in a group.
-- KEYS[1] hash member -> "nonce|opened us|expires ms"      KEYS[2] zset "m:<member>", "n:<nonce>" -> until ms
-- ARGV 1 member  2 nonce  3 limit (0: none)  4 "1": the oldest goes, "0": refuse  5 seat ms  6 barred ms
-- Answers {"admitted", evicted nonce, ...}, {"refused"} or {"barred"}.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local opened = clock[1] * 1000000 + clock[2]
local barred = redis.call('ZSCORE', KEYS[2], 'm:' .. ARGV[1])
if barred and tonumber(barred) > now then
  return { 'barred' }
end
local all = redis.call('HGETALL', KEYS[1])
local others, gone, evicted = {}, {}, {}
for i = 1, #all, 2 do
  local nonce, since, till = string.match(all[i + 1], '^([^|]*)|(%d+)|(%d+)$')
  if not nonce or tonumber(till) <= now then
    gone[#gone + 1] = all[i]
  elseif all[i] == ARGV[1] then
    if nonce ~= ARGV[2] then
      evicted[#evicted + 1] = nonce
    end
  else
    others[#others + 1] = { all[i], nonce, tonumber(since) }
  end
end
local limit = tonumber(ARGV[3])
local over = limit > 0 and #others - limit + 1 or 0
if over > 0 and ARGV[4] ~= '1' then
  return { 'refused' }
end
local till = now + tonumber(ARGV[5])
local bar = string.format('%.0f', now + tonumber(ARGV[6]))
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. '|' .. string.format('%.0f|%.0f', opened, till))
if over > 0 then
  table.sort(others, function(a, b) return a[3] < b[3] end)
  for i = 1, over do
    gone[#gone + 1] = others[i][1]
    evicted[#evicted + 1] = others[i][2]
    redis.call('ZADD', KEYS[2], bar, 'm:' .. others[i][1])
  end
end
for _, member in ipairs(gone) do
  redis.call('HDEL', KEYS[1], member)
end
for _, nonce in ipairs(evicted) do
  redis.call('ZADD', KEYS[2], bar, 'n:' .. nonce)
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[2], ARGV[6])
table.insert(evicted, 1, 'admitted')
return evicted
