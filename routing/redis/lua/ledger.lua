-- ledger: read where the messages of every queue are, and how they ended, at one moment.
--
-- KEYS:  1 unacked hash            2 origins hash
--        then per queue: ledger, delayed set, dead letters, dropped messages, consumers set, slots
--        of its gate, its rate, blocked set, ready lists
-- ARGV:  1 number of ready lists of a queue
--        2 "1" to count the unacknowledged messages of each queue in the records, and the blocked
--        3 how lists of parked messages are named, before the length of the ready list's name
--        4 most lists of parked messages to count
-- Reply: {server time in ms,
--         then per queue {waiting, delayed, dead letters, dropped messages that wait for a result,
--                         ms stamp of the oldest waiting message or "", messages in the records,
--                         live workers that consume it, delayed messages that are due,
--                         slots that are held, ms until the next start by its rate, messages that
--                         are parked, or "" when they have too many lists,
--                         counter, value, counter, value ...}}

-- include: kinds

local lists = tonumber(ARGV[1])
local wrong = misused('hash', KEYS[1], KEYS[2])
for key = 3, #KEYS, 8 + lists do
  wrong = wrong or misused('hash', KEYS[key], KEYS[key + 5]) or misused('string', KEYS[key + 6])
    or misused('zset', KEYS[key + 1], KEYS[key + 4], KEYS[key + 7])
    or misused('list', KEYS[key + 2], KEYS[key + 3], unpack(KEYS, key + 8, key + 7 + lists))
end
if wrong then return wrong end

-- A record without an origin is a stock worker's; an origin without a record is one that stock tools
-- took away.
local recorded = {}
if ARGV[2] == '1' then
  local origins = redis.call('HGETALL', KEYS[2])
  for i = 1, #origins, 2 do
    if redis.call('HEXISTS', KEYS[1], origins[i]) == 1 then
      recorded[origins[i + 1]] = (recorded[origins[i + 1]] or 0) + 1
    end
  end
end

-- include: time
-- include: trailing
-- include: parked

-- How many messages are parked of the lists of a queue, as far as these can be counted.
local most, misused_one = tonumber(ARGV[4]), nil
local function count_parked(blocked, from, to)
  most = most - redis.call('ZCARD', blocked) * lists
  if most < 0 then return '' end
  local count = 0
  for _, gate in ipairs(redis.call('ZRANGE', blocked, 0, -1)) do
    local one, lengths = misused('list', unpack(parked_lists(ARGV[3], gate, from, to)))
    misused_one = misused_one or one
    for _, length in ipairs(lengths or {}) do count = count + length end
  end
  return count
end

local reply = {now}
for key = 3, #KEYS, 8 + lists do
  local waiting, records, oldest = 0, 0, nil
  for l = key + 8, key + 7 + lists do
    waiting = waiting + redis.call('LLEN', KEYS[l])
    records = records + (recorded[KEYS[l]] or 0)
    local payload = redis.call('LINDEX', KEYS[l], -1)
    local stamp = payload and stamp_of(payload)
    if stamp and (not oldest or stamp < oldest) then oldest = stamp end
  end
  local row = {
    waiting,
    redis.call('ZCARD', KEYS[key + 1]),
    redis.call('LLEN', KEYS[key + 2]),
    redis.call('LLEN', KEYS[key + 3]),
    oldest and whole(oldest) or '',
    records,
    redis.call('ZCOUNT', KEYS[key + 4], now, '+inf'),
    redis.call('ZCOUNT', KEYS[key + 1], '-inf', now),
    redis.call('HLEN', KEYS[key + 5]),
    math.max(0, math.ceil(tonumber(redis.call('GET', KEYS[key + 6]) or 0) - now)),
    ARGV[2] == '1' and count_parked(KEYS[key + 7], key + 8, key + 7 + lists) or '',
  }
  for _, value in ipairs(redis.call('HGETALL', KEYS[key])) do row[#row + 1] = value end
  reply[#reply + 1] = row
end
return misused_one or reply
