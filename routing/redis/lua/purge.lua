-- purge: drop waiting and delayed messages of one queue, and count them; a bounded number a call.
--
-- KEYS:  1 bell of the queue       2 ledger hash of the queue, or the first key for none
--        3 delayed set               4 delayed messages
--        5... the ready lists of the queue
-- ARGV:  none
-- Reply: {messages dropped, messages that are left}

-- include: kinds
-- include: limits

local bell, ledger, delayed, payloads = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local wrong = misused('list', bell, unpack(KEYS, 5)) or misused('zset', delayed) or misused('hash', payloads)
  or (ledger ~= bell and misused('hash', ledger))
if wrong then return wrong end

local members = redis.call('ZRANGE', delayed, 0, MOST - 1)
local dropped = #members
if dropped > 0 then
  redis.call('ZREM', delayed, unpack(members))
  redis.call('HDEL', payloads, unpack(members))
end
local left = redis.call('ZCARD', delayed)
if left == 0 then redis.call('DEL', payloads) end
for k = 5, #KEYS do
  local length = redis.call('LLEN', KEYS[k])
  local gone = math.min(length, MOST - dropped)
  if gone > 0 then redis.call('LTRIM', KEYS[k], 0, -gone - 1) end
  dropped, left = dropped + gone, left + length - gone
end
if left == 0 then redis.call('DEL', bell) end
if ledger ~= bell and dropped > 0 then
  -- What is left is dropped next: its bytes are counted out with the last of it.
  if left == 0 then redis.call('HDEL', ledger, 'bytes') end
  redis.call('HINCRBY', ledger, 'purged', dropped)
end
return {dropped, left}
