-- The leases of runs' producers.
--
-- KEYS   1 zset: run → until when its producer lives, ms   2 hash: run → epoch of the claim
--        3 zset: run → until when the wish to end it is remembered   4 zset: run → until when its end is remembered
-- ARGV   1 what  2 ms: of the lease, or how long to remember  3 ms that every key stays after the last word
--        from 4: renew, keep, watch: run, epoch, …   cancel, end: run   expired: most   alive: run, …
-- reply  renew, keep { 0 kept | 1 kept, and wanted to end | 2 fenced | 3 keep only: an epoch that is news, … }   expired { run, epoch, … }   alive { 0 | 1, … }
--
-- ARGV are strings, and ids may look like numbers: they are never compared as such.

local what, life, keep = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local until_text = string.format('%.0f', now + life)
local now_text = string.format('%.0f', now)
local answers = {}

if what == 'renew' or what == 'keep' then
  for i = 4, #ARGV, 2 do
    local run, epoch = ARGV[i], ARGV[i + 1]
    local held = redis.call('HGET', KEYS[2], run)
    if redis.call('ZSCORE', KEYS[4], run) or (held and tonumber(held) > tonumber(epoch)) then
      answers[#answers + 1] = 2
    elseif what == 'keep' and (not held or tonumber(held) < tonumber(epoch)) then
      answers[#answers + 1] = 3
    else
      redis.call('ZADD', KEYS[1], until_text, run)
      if held ~= epoch then
        redis.call('HSET', KEYS[2], run, epoch)
      end
      answers[#answers + 1] = redis.call('ZSCORE', KEYS[3], run) and 1 or 0
    end
  end
elseif what == 'watch' then
  for i = 4, #ARGV, 2 do
    local run, epoch = ARGV[i], ARGV[i + 1]
    if not redis.call('ZSCORE', KEYS[1], run) and not redis.call('ZSCORE', KEYS[4], run) then
      redis.call('ZADD', KEYS[1], until_text, run)
      local held = redis.call('HGET', KEYS[2], run)
      if not held or tonumber(held) < tonumber(epoch) then
        redis.call('HSET', KEYS[2], run, epoch)
      end
    end
  end
elseif what == 'cancel' then
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now_text)
  redis.call('ZADD', KEYS[3], until_text, ARGV[4])
elseif what == 'end' then
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now_text)
  redis.call('ZADD', KEYS[4], until_text, ARGV[4])
  redis.call('ZREM', KEYS[1], ARGV[4])
  redis.call('HDEL', KEYS[2], ARGV[4])
  redis.call('ZREM', KEYS[3], ARGV[4])
elseif what == 'expired' then
  local runs = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_text, 'LIMIT', 0, ARGV[4])
  for i = 1, #runs do
    answers[#answers + 1] = runs[i]
    answers[#answers + 1] = redis.call('HGET', KEYS[2], runs[i]) or '0'
  end
  return answers
else
  for i = 4, #ARGV do
    local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
    answers[#answers + 1] = score and tonumber(score) > now and 1 or 0
  end
  return answers
end

for i = 1, 4 do
  redis.call('PEXPIRE', KEYS[i], keep)
end
return answers
