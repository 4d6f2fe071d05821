-- reclaim: return messages whose lease ran out to the front of their queues, in fetch order.
--
-- A beat tells an outage of the broker from the death of a worker: when nobody has called for a
-- third of a lease, nobody could renew either, and everybody gets another lease of time.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 started hash
--        6 workers hash            7 reclaim hash
-- ARGV:  1 lease in milliseconds   2 most messages to take
--        3 prefix of all keys      4 what parts a queue's name from its priority step
--        5 how ledgers are named, before the queue's name      6 how bells are
-- Reply: number of messages that went back, or -1 while everybody has time to renew; fewer when they
--        are big. What belongs to a key of another type stays: that is told when nothing went back

-- include: kinds
-- include: time
-- include: bell
-- include: gate
-- include: records
-- include: trailing
-- include: charged
-- include: limits

local WORKERS, RECLAIM = KEYS[6], KEYS[7]
local lease, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local wrong = misused('hash', WORKERS, RECLAIM)
if wrong then return wrong end

local state = redis.call('HMGET', RECLAIM, 'beat', 'not_before', 'swept')
local beat, not_before = tonumber(state[1] or 0), tonumber(state[2] or 0)
redis.call('HDEL', RECLAIM, 'beat')
-- Names of workers that have gone would gather; those that live tell theirs with each renewal.
if now - tonumber(state[3] or 0) > 3600000 then
  if state[3] then redis.call('DEL', WORKERS) end
  redis.call('HSET', RECLAIM, 'swept', whole(now))
end
redis.call('HSET', RECLAIM, 'beat', whole(now))
if now - beat > lease / 3 then
  redis.call('HSET', RECLAIM, 'not_before', whole(now + lease))
  return -1
end
if now < not_before then return -1 end

-- Only what was started is charged: its neighbours did not kill the worker. Of those that ran in one
-- call nobody knows which did; each notes how many they were, and runs in less company the next time.
local function charged_if_started(tag, message)
  local company = redis.call('HGET', STARTED, tag)
  if not company then return message end
  if (tonumber(company) or 1) > 1 then
    return with_latest(message, '"company":%d+', '"company":' .. whole(tonumber(company)))
  end
  local worker = redis.call('HGET', WORKERS, string.match(tag, '^[^:]*')) or 'a worker'
  return charged(message, 'the lease of ' .. worker .. ' ran out')
end

-- Their tags in the order of their fetch, as texts that sort so.
local expired, tag_of = {}, {}
local until_now = string.format('(%.0f', now)
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', until_now, 'LIMIT', 0, 5 * most)) do
  local fetcher, call, queue, n = string.match(tag, '^(.*):(%d+):(%d+):(%d+)$')
  local place = fetcher and string.format('%s:%015.0f:%06.0f:%06.0f:', fetcher, call, queue, n) or ''
  expired[#expired + 1] = place .. tag
  tag_of[place .. tag] = tag
end
table.sort(expired)

-- A worker of another app, or of another version, may not know the queue.
local function keys_of(origin)
  local name = string.sub(origin, #ARGV[3] + 1)
  name = string.sub(name, 1, (string.find(name, ARGV[4], 1, true) or 0) - 1)
  return name, ARGV[5] .. name, ARGV[6] .. name
end

-- Says once for each list whether messages cannot go back there.
local checked = {}
local function is_misused(origin)
  if checked[origin] == nil then
    local _, ledger, bell = keys_of(origin)
    checked[origin] = misused('list', origin, bell) or misused('hash', ledger) or false
    if checked[origin] and string.find(checked[origin].err, 'WRONGTYPE', 1, true) then wrong = checked[origin] end
  end
  return checked[origin]
end

local size, back, reclaimed, bytes = 0, {}, {}, {}
-- Each push to the front passes the one before it, so the newest go first, also when it takes
-- several calls.
for i = #expired, 1, -1 do
  local tag = tag_of[expired[i]]
  local origin = redis.call('HGET', ORIGINS, tag)
  local stays = origin and is_misused(origin)
  local message = origin and not stays and message_in(redis.call('HGET', UNACKED, tag))
  local is_lost, is_back = not message and not stays, false
  if message then
    message = charged_if_started(tag, redelivered(message))
    -- A user that may not touch its queue leaves it to one that may.
    is_back = type(redis.pcall('RPUSH', origin, message)) == 'number'
    checked[origin] = not is_back
  end
  if is_back then
    back[#back + 1], size = tag, size + #message
    local name = keys_of(origin)
    reclaimed[name] = (reclaimed[name] or 0) + 1
    bytes[name] = (bytes[name] or 0) + #message
  end
  if is_lost then
    redis.call('ZREM', LEASES, tag)
    redis.call('HDEL', STARTED, tag)
    free_slots(tag)
  end
  if #back >= most or size >= MOST_BYTES then break end
end
if #back > 0 then release(unpack(back)) end

for name, count in pairs(reclaimed) do
  local ledger, bell = ARGV[5] .. name, ARGV[6] .. name
  if redis.call('EXISTS', ledger) == 1 then
    redis.call('HINCRBY', ledger, 'unacked', -count)
    redis.call('HINCRBY', ledger, 'reclaimed', count)
    redis.call('HINCRBY', ledger, 'bytes', bytes[name])
  end
  ring(bell)
end
if #back == 0 and wrong then return wrong end
return #back
