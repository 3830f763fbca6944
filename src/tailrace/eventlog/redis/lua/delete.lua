-- Delete a stream's entries. Meta stays for a while as a tombstone, so that ids stay larger and readers are told.
--
-- KEYS   1 events  2 meta  3 uids
-- ARGV   1 PUBLISH or SPUBLISH  2 how long the tombstone stays, in ms
-- reply  1, or 0 when there was nothing

local h, exists = head(KEYS[1], KEYS[2])
if exists == 0 then
  return 0
end
local last = h[1]
if last == '0-0' then
  -- Only others wrote to it; their ids must not come again either.
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      last = info[i + 1]
    end
  end
end
redis.call('DEL', KEYS[1])
redis.call('DEL', KEYS[3])
redis.call('HSET', KEYS[2], 'state', 'deleted', 'last', last)
redis.call('HDEL', KEYS[2], 'exp')
redis.call('PEXPIRE', KEYS[2], ARGV[2])
publish_state(ARGV[1], KEYS[2], last, 'deleted')
return 1
