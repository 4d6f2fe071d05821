-- What is unacknowledged: a tag stands in these structures from its fetch to its ending.
local UNACKED, INDEX, LEASES, ORIGINS, STARTED = unpack(KEYS, 1, 5)

-- A record, as kombu writes and reads it: the message, an exchange, and the queue's name as JSON.
local function record_of(message, name)
  return '[' .. message .. ',"",' .. name .. ']'
end

local function message_in(record)
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
