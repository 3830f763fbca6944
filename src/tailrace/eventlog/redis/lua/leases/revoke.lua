-- Remember a revocation. KEYS[1] zset name -> Unix seconds. ARGV 1 name  2 seconds to remember it
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
-- A clock that went back makes no revocation smaller.
local before = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
redis.call('ZADD', KEYS[1], string.format('%.6f', math.max(now, before)), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now - tonumber(ARGV[2])))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', tonumber(ARGV[2]) * 1000))
return 1
