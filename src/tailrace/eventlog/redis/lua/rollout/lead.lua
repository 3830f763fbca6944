-- Lead, or go on leading. A full server refuses SET but not PEXPIRE: who leads keeps leading.
-- KEYS[1] string: who leads      ARGV 1 me  2 for how long, ms
-- Answers 1 or 0.
local leader = redis.call('GET', KEYS[1])
if leader == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
if leader then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
