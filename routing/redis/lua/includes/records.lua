-- What is unacknowledged: a tag stands in these structures from its fetch to its ending.
local UNACKED, INDEX, LEASES, ORIGINS, STARTED = unpack(KEYS, 1, 5)
local misused_record = misused('hash', UNACKED, ORIGINS, STARTED) or misused('zset', INDEX, LEASES)
if misused_record then return misused_record end

-- A record, as kombu writes and reads it: the message, an exchange, and the queue's name as JSON.
local function record_of(message, name)
  return '[' .. message .. ',"",' .. name .. ']'
end

-- Its end is enough to find the message, of which a pattern would look at every byte.
local function message_in(record)
  local tail = record and string.sub(record, -1000) or ''
  local cut = string.match(tail, '^.*(),"",".-"%]$')
  if cut and string.sub(record, 1, 1) == '[' then return string.sub(record, 2, #record - #tail + cut - 1) end
  return record and string.match(record, '^%[(.*),"",".-"%]$')
end

-- Takes tags out, at most what Lua's stack holds: the messages are nobody's then. Returns how many
-- were somebody's.
local function release(...)
  local removed = redis.call('HDEL', UNACKED, ...)
  redis.call('ZREM', INDEX, ...)
  redis.call('ZREM', LEASES, ...)
  redis.call('HDEL', ORIGINS, ...)
  redis.call('HDEL', STARTED, ...)
  free_slots(...)
  return removed
end
