-- Let a stream expire, or stay.
--
-- KEYS   1 events  2 meta  3 uids
-- ARGV   1 remaining life in ms ("": for ever)  2 how long meta stays longer, in ms
--        3 "1" if each append is to give it this life again
-- reply  1, or 0 when there is no such stream

local h, exists = head(KEYS[1], KEYS[2])
if exists == 0 then
  return 0
end
if ARGV[1] == '' then
  redis.call('HDEL', KEYS[2], 'exp', 'renew')
  for i = 1, 3 do
    redis.call('PERSIST', KEYS[i])
  end
  return 1
end
local now = now_ms()
local exp = now + tonumber(ARGV[1])
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[2], 'renew', string.format('%.0f', now) .. ' ' .. ARGV[1])
else
  redis.call('HDEL', KEYS[2], 'renew')
end
redis.call('HSET', KEYS[2], 'exp', string.format('%.0f', exp))
redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', exp + tonumber(ARGV[2])))
redis.call('PEXPIREAT', KEYS[3], string.format('%.0f', exp))
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', exp))
return 1
