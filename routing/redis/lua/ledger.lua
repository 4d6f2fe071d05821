-- ledger: read where the messages of every queue are, and how they ended, at one moment.
--
-- KEYS:  1 unacked hash            2 origins hash
--        then per queue: ledger, delayed set, dead letters, dropped messages, consumers set, slots
--        of its gate, its rate, blocked set, ready lists
-- ARGV:  1 number of ready lists of a queue
--        2 "1" to count the unacknowledged messages of each queue in the records, and the blocked
--        3 how lists of parked messages are named, before the length of the ready list's name
-- Reply: {server time in ms,
--         then per queue {waiting, delayed, dead letters, dropped messages that wait for a result,
--                         ms stamp of the oldest waiting message or "", messages in the records,
--                         live workers that consume it, delayed messages that are due,
--                         slots that are held, ms until the next start by its rate, counted blocked,
--                         counter, value, counter, value ...}}

local lists = tonumber(ARGV[1])

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

local reply = {now}
for key = 3, #KEYS, 8 + lists do
  local waiting, records, blocked, oldest = 0, 0, 0, nil
  for l = key + 8, key + 7 + lists do
    waiting = waiting + redis.call('LLEN', KEYS[l])
    records = records + (recorded[KEYS[l]] or 0)
    if ARGV[2] == '1' then blocked = blocked + each_parked(KEYS[key + 7], ARGV[3], KEYS[l], function() end) end
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
    blocked,
  }
  for _, value in ipairs(redis.call('HGETALL', KEYS[key])) do row[#row + 1] = value end
  reply[#reply + 1] = row
end
return reply
