-- Use a short token. KEYS[1] string "<holder>\n<payload>"  ARGV 1 holder  2 kept ms
-- Answers {payload, holder before} or nothing when there is no such token.
local token = redis.call('GET', KEYS[1])
if not token then
  return false
end
local cut = string.find(token, '\n', 1, true)
redis.call('SET', KEYS[1], ARGV[1] .. string.sub(token, cut), 'PX', ARGV[2])
return { string.sub(token, cut + 1), string.sub(token, 1, cut - 1) }
