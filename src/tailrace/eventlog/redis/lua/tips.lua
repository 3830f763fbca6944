-- The id of the last entry of each stream, whoever wrote it. Reads only.
--
-- KEYS   events of each stream
-- reply  per stream its last entry's id; "0-0": it has none; "": the key holds something else

local tips = {}
for i = 1, #KEYS do
  local entries = redis.pcall('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)
  if entries.err then
    tips[i] = ''
  else
    tips[i] = entries[1] and entries[1][1] or '0-0'
  end
end
return tips
