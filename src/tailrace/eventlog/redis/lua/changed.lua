-- Which of the watched streams differ from what is known. Reads only; 2 000 streams take about 3 ms.
--
-- KEYS   events and meta of each stream, in pairs. On Cluster: streams of one slot only.
-- ARGV   per stream what is known, "<last id>|<state>|<incarnation>"; "" asks in any case
-- reply  per stream that differs: { index from 0, last id, state, incarnation, base id, why, largest }

local changed = {}
for i = 1, #ARGV do
  local h = head(KEYS[2 * i - 1], KEYS[2 * i])
  if h[1] .. '|' .. h[2] .. '|' .. h[3] ~= ARGV[i] then
    changed[#changed + 1] = { i - 1, h[1], h[2], h[3], h[4], h[5], h[6] }
  end
end
return changed
