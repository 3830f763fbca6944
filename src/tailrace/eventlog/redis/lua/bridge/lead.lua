-- Lead, go on leading, or leave off.
-- KEYS[1] hash: owner, until (ms), epoch, seen (ms: what was heard before is stored)
-- ARGV    1 me  2 for how long, ms; "0": leave off  3 ms that the oldest message waits which I have not stored
-- Answers {1 or 0: whether I lead, epoch, 1 when it changed hands, ms since what the leader before is known to have
-- stored all of}.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local m = redis.call('HMGET', KEYS[1], 'owner', 'until', 'epoch', 'seen')
local epoch, till = tonumber(m[3] or '0'), tonumber(m[2] or '0')
local mine = m[1] == ARGV[1]
if ARGV[2] == '0' then
  if mine then
    redis.call('HSET', KEYS[1], 'until', '0')
  end
  return { 0, string.format('%.0f', epoch), 0, 0 }
end
local silent = m[4] and now - tonumber(m[4]) or 0
if not mine and till > now then
  return { 0, string.format('%.0f', epoch), 0, silent }
end
local fresh = not mine or till <= now
if fresh then
  -- Never smaller than one before, even where this key was lost: streams remember the epochs they saw.
  epoch = math.max(epoch + 1, now)
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'until', string.format('%.0f', now + tonumber(ARGV[2])),
  'epoch', string.format('%.0f', epoch), 'seen', string.format('%.0f', now - tonumber(ARGV[3])))
redis.call('PEXPIRE', KEYS[1], 604800000)
return { 1, string.format('%.0f', epoch), fresh and 1 or 0, silent }
