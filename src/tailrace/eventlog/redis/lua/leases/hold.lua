-- Keep a short token for its holder. KEYS[1] as in claim.lua. ARGV 1 holder  2 kept ms  3 payload
-- Answers 1, or 0 when a newer connection has it. A token that the server forgot is stored again.
local token = redis.call('GET', KEYS[1])
if not token then
  redis.call('SET', KEYS[1], ARGV[1] .. '\n' .. ARGV[3], 'PX', ARGV[2])
  return 1
end
if string.sub(token, 1, #ARGV[1] + 1) ~= ARGV[1] .. '\n' then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
