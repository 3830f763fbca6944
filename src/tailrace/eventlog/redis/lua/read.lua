-- One page of a stream, bounded in entries and in bytes. Reads only.
--
-- KEYS   1 events  2 meta
-- ARGV   1 from  2 to, both inclusive (ids, "-" or "+"; reversed: from is the larger)
--        3 limit of entries  4 limit of bytes, crossed by at most one entry  5 "1": reversed
--        6 "1": a range: `from` counts like every other entry, and the first retained id is told in any case.
--          "0": a reader that has `from` already: it counts for no limit (a page of it alone would lead nowhere), and
--          proves the page, so that the first retained id is told only where it is missing
-- reply  { head, more (1 or 0), first retained id or nil, entries }

local limit, budget, reverse = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
local command = reverse and 'XREVRANGE' or 'XRANGE'
local h = head(KEYS[1], KEYS[2])
local largest = tonumber(h[6])
local page, bytes, at, more = {}, 0, ARGV[1], 0
local own = 0

while true do
  -- Before any size is known, a few entries tell; nothing larger than `largest` is ours, but others write too.
  local size = largest > 0 and largest or budget / 8
  local want = math.max(1, math.min(100, math.floor((budget - bytes) / size), limit + own - #page))
  -- A range that excludes its start needs Redis 6.2: read the last entry again and skip it.
  local skip = #page > 0 and 1 or 0
  local entries = redis.call(command, KEYS[1], at, ARGV[2], 'COUNT', want + skip)
  for i = 1 + skip, #entries do
    local fields = entries[i][2]
    local n = 0
    for j = 1, #fields do
      n = n + #fields[j]
    end
    page[#page + 1] = entries[i]
    if #page == 1 and ARGV[6] == '0' and entries[i][1] == ARGV[1] then
      own = 1
    else
      bytes = bytes + n
    end
    if n > largest then
      largest = n
    end
  end
  if #entries < want + skip then
    break
  end
  at = page[#page][1]
  if #page >= limit + own or bytes >= budget then
    if #redis.call(command, KEYS[1], at, ARGV[2], 'COUNT', 2) == 2 then
      more = 1
    end
    break
  end
end

local first = false
if own == 0 then
  local entry = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  first = entry and entry[1] or false
end
return { h, more, first, page }
