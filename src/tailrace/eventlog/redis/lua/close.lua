-- End a stream: no more appends.
--
-- KEYS   1 events  2 meta  3 uids
-- ARGV   1 PUBLISH or SPUBLISH  2 how long it stays, in ms ("": as it was)  3 how long meta stays longer, in ms
-- reply  { head }; its state tells whether there was something to close

local h, exists = head(KEYS[1], KEYS[2])
if exists == 0 or h[2] == 'closed' or h[1] == '0-0' then
  return { h }
end
redis.call('HSET', KEYS[2], 'state', 'closed')
if ARGV[2] ~= '' then
  local exp = now_ms() + tonumber(ARGV[2])
  redis.call('HSET', KEYS[2], 'exp', string.format('%.0f', exp))
  redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', exp))
  redis.call('PEXPIREAT', KEYS[3], string.format('%.0f', exp))
  redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', exp + tonumber(ARGV[3])))
end
h[2] = 'closed'
publish_state(ARGV[1], KEYS[2], h[1], 'closed')
return { h }
