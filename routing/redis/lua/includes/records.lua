-- What is unacknowledged: a tag stands in five of these structures from its fetch to its ending.
local UNACKED, INDEX, LEASES, ORIGINS, DELIVERIES, STARTED = unpack(KEYS, 1, 6)

-- A record, as kombu writes and reads it: the message, an exchange, and the queue's name as JSON.
local function record_of(message, name)
  return '[' .. message .. ',"",' .. name .. ']'
end

local function message_in(record)
  return record and string.match(record, '^%[(.*),"",".-"%]$')
end

-- Takes a tag out: the message is nobody's then.
local function release(tag)
  redis.call('HDEL', UNACKED, tag)
  redis.call('ZREM', INDEX, tag)
  redis.call('ZREM', LEASES, tag)
  redis.call('HDEL', ORIGINS, tag)
  redis.call('HDEL', STARTED, tag)
end
