-- Which of these streams are not as the caller knows them? Read only; about 1.5 us a stream.
--
-- KEYS[2i-1], KEYS[2i]  entries and meta of stream i (on Cluster all of one slot)
-- ARGV[i]               "<last>/<state>/<inc>" as known; "" asks for the stream whatever it is
--
-- Answers, for each stream that differs, 8 values one after the other:
--   i, last, state, inc, base, why, big, exp     (strings; "" where meta has none)
-- state is the effective one: meta may say open or closed while the entries are gone; then the stream is expired (its
-- exp has passed) or deleted. A stream without meta is missing. describe.lua follows the same rules.

local answer = {}
local now = nil
for i = 1, #ARGV do
  local meta = redis.call('HMGET', KEYS[2 * i], 'last', 'state', 'inc', 'base', 'why', 'big', 'exp')
  local last, state, inc = meta[1] or '0-0', meta[2], meta[3] or '0'
  if not meta[1] then
    state = 'missing'
  elseif state ~= 'expired' and state ~= 'deleted' and redis.call('EXISTS', KEYS[2 * i - 1]) == 0 then
    if not now then
      local time = redis.call('TIME')
      now = time[1] * 1000 + math.floor(time[2] / 1000)
    end
    local exp = tonumber(meta[7] or '')
    state = (exp and exp <= now) and 'expired' or 'deleted'
  end
  if ARGV[i] ~= last .. '/' .. state .. '/' .. inc then
    local n = #answer
    answer[n + 1] = tostring(i)
    answer[n + 2] = last
    answer[n + 3] = state
    answer[n + 4] = inc
    answer[n + 5] = meta[4] or ''
    answer[n + 6] = meta[5] or ''
    answer[n + 7] = meta[6] or ''
    answer[n + 8] = meta[7] or ''
  end
end
return answer
