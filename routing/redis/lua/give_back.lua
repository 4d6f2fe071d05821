-- give_back: return held messages to the front of their queue, in the order they were fetched.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 deliveries hash
--        6 bell of the queue       7 ledger hash of the queue, or "" for none
-- ARGV:  tag and message id in turn, in fetch order; an empty id charges no delivery
-- Reply: number of messages that went back (tags that are gone are passed over)

local UNACKED, INDEX, LEASES, ORIGINS, DELIVERIES = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local returned = 0

-- Each push to the front passes the one before it, so the newest goes first.
for i = #ARGV - 1, 1, -2 do
  local tag, id = ARGV[i], ARGV[i + 1]
  local record = redis.call('HGET', UNACKED, tag)
  local origin = redis.call('HGET', ORIGINS, tag)
  local message = record and origin and string.match(record, '^%[(.*),"",".-"%]$')
  if message then
    redis.call('HDEL', UNACKED, tag)
    redis.call('ZREM', INDEX, tag)
    redis.call('ZREM', LEASES, tag)
    redis.call('HDEL', ORIGINS, tag)
    redis.call('RPUSH', origin, message)
    if id ~= '' then redis.call('HINCRBY', DELIVERIES, id, 1) end
    returned = returned + 1
  end
end

if returned > 0 then
  if KEYS[7] ~= '' then
    redis.call('HINCRBY', KEYS[7], 'unacked', -returned)
    redis.call('HINCRBY', KEYS[7], 'given_back', returned)
  end
  if redis.call('EXISTS', KEYS[6]) == 0 then
    redis.call('LPUSH', KEYS[6], '1')
    redis.call('PEXPIRE', KEYS[6], 3600000)
  end
end
return returned
