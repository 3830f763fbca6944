-- What is set, and the time by which it is meant.
-- KEYS[1] hash: "k:<kind>" -> JSON, "m:<kind>": it was ever moved, "version" -> number of the last change,
--         "told" -> the last one in the stream
-- Answers { seconds, microseconds, { field, value, ... } }.
local clock = redis.call('TIME')
return { clock[1], clock[2], redis.call('HGETALL', KEYS[1]) }
