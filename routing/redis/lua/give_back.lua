-- give_back: return held messages to the front of their queue, in the order they were fetched.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 deliveries hash            6 started hash
--        7 bell of the queue       8 ledger hash of the queue, or "" for none
-- ARGV:  tag, message id, mark and evidence in turn, in fetch order; the mark is "" for a message
--        that nobody may have begun, "redelivered" for one that may have run in part, "charged"
--        when that counts as a delivery too; the evidence says why it was charged
-- Reply: number of messages that went back (tags that are gone are passed over)

local UNACKED, INDEX, LEASES, ORIGINS, DELIVERIES, STARTED = unpack(KEYS, 1, 6)
local returned, bytes = 0, 0

-- Adds the mark to the trailing object of a text; producers of stock Celery write none.
local function redelivered(text)
  local tail = string.match(string.sub(text, -300), ',"celeriac":({[^{}]*})}$')
  if not tail then return string.sub(text, 1, -2) .. ',"celeriac":{"redelivered":true}}' end
  if string.find(tail, '"redelivered":true', 1, true) then return text end
  return string.sub(text, 1, -3) .. ',"redelivered":true}}'
end

-- Each push to the front passes the one before it, so the newest goes first.
for i = #ARGV - 3, 1, -4 do
  local tag, id, mark = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local record = redis.call('HGET', UNACKED, tag)
  local origin = redis.call('HGET', ORIGINS, tag)
  local message = record and origin and string.match(record, '^%[(.*),"",".-"%]$')
  if message then
    redis.call('HDEL', UNACKED, tag)
    redis.call('ZREM', INDEX, tag)
    redis.call('ZREM', LEASES, tag)
    redis.call('HDEL', ORIGINS, tag)
    redis.call('HDEL', STARTED, tag)
    if mark ~= '' and string.sub(message, -1) == '}' then message = redelivered(message) end
    redis.call('RPUSH', origin, message)
    if mark == 'charged' and id ~= '' then
      local count = string.match(redis.call('HGET', DELIVERIES, id) or '0', '^%d+')
      redis.call('HSET', DELIVERIES, id, (count + 1) .. ' ' .. ARGV[i + 3])
      -- A week without a charge: what is noted belongs to messages that were purged or dropped.
      redis.call('PEXPIRE', DELIVERIES, 604800000)
    end
    returned, bytes = returned + 1, bytes + #message
  end
end

if returned > 0 then
  if KEYS[8] ~= '' then
    redis.call('HINCRBY', KEYS[8], 'unacked', -returned)
    redis.call('HINCRBY', KEYS[8], 'given_back', returned)
    redis.call('HINCRBY', KEYS[8], 'bytes', bytes)
  end
  if redis.call('EXISTS', KEYS[7]) == 0 then
    redis.call('LPUSH', KEYS[7], '1')
    redis.call('PEXPIRE', KEYS[7], 3600000)
  end
end
return returned
