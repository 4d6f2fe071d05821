-- purge: drop waiting, blocked and delayed messages of one queue, and count them; a bounded number a call.
--
-- KEYS:  1 bell of the queue       2 ledger hash of the queue, or the first key for none
--        3 delayed set               4 delayed messages
--        5 blocked set of the queue
--        6... the ready lists of the queue
-- ARGV:  1 how lists of parked messages are named, before the length of the ready list's name
-- Reply: {messages dropped, messages that are left, of gates that were not looked at one each}

-- include: kinds
-- include: limits
-- include: parked

local bell, ledger, delayed, payloads, blocked = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local wrong = misused('list', bell, unpack(KEYS, 6)) or misused('zset', delayed, blocked)
  or misused('hash', payloads) or (ledger ~= bell and misused('hash', ledger))
if wrong then return wrong end
-- What is parked goes last.
local gate_count, waiting = redis.call('ZCARD', blocked), redis.call('ZCARD', delayed)
for k = 6, #KEYS do waiting = waiting + redis.call('LLEN', KEYS[k]) end
local gates, parked = waiting < MOST and redis.call('ZRANGE', blocked, 0, MOST / 2 - 1) or {}, {}
for n, gate in ipairs(gates) do
  parked[n] = parked_lists(ARGV[1], gate, 6, #KEYS)
  wrong = wrong or misused('list', unpack(parked[n]))
end
if wrong then return wrong end

local members = redis.call('ZRANGE', delayed, 0, MOST - 1)
local dropped = #members
if dropped > 0 then
  redis.call('ZREM', delayed, unpack(members))
  redis.call('HDEL', payloads, unpack(members))
end
local left = redis.call('ZCARD', delayed)
if left == 0 then redis.call('DEL', payloads) end

-- Cuts off the oldest messages of lists, as many as may still be dropped; returns how many are left.
local function cut(lists)
  local rest = 0
  for _, list in ipairs(lists) do
    local length = redis.call('LLEN', list)
    local gone = math.min(length, MOST - dropped)
    if gone > 0 then redis.call('LTRIM', list, 0, -gone - 1) end
    dropped, rest = dropped + gone, rest + length - gone
  end
  return rest
end

left = left + cut({unpack(KEYS, 6)})
local before = dropped
for n, gate in ipairs(gates) do
  local rest = cut(parked[n])
  if rest == 0 then redis.call('ZREM', blocked, gate) end
  left = left + rest
end
local unblocked = dropped - before
left = left + gate_count - #gates
if left == 0 then redis.call('DEL', bell, blocked) end
if ledger ~= bell and dropped > 0 then
  if unblocked > 0 then redis.call('HINCRBY', ledger, 'blocked', -unblocked) end
  -- What is left is dropped next: its bytes are counted out with the last of it.
  if left == 0 then redis.call('HDEL', ledger, 'bytes', 'blocked') end
  redis.call('HINCRBY', ledger, 'purged', dropped)
end
return {dropped, left}
