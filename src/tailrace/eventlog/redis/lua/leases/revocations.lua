-- What was revoked. KEYS[1] zset name -> Unix seconds. ARGV 1 from when on, Unix seconds
-- Answers { now, { name, seconds, … } }, oldest first.
local clock = redis.call('TIME')
local found = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], '+inf', 'WITHSCORES')
return { string.format('%.6f', clock[1] + clock[2] / 1000000), found }
