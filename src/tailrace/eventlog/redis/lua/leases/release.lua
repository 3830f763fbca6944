-- Give a seat back, if it is still this connection's. KEYS[1] as in admit.lua. ARGV 1 member  2 nonce
local seat = redis.call('HGET', KEYS[1], ARGV[1])
if seat and string.sub(seat, 1, #ARGV[2] + 1) == ARGV[2] .. '|' then
  return redis.call('HDEL', KEYS[1], ARGV[1])
end
return 0
