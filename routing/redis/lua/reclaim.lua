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
-- Reply: number of messages that went back, or -1 while everybody has time to renew

-- include: time
-- include: bell
-- include: gate
-- include: records
-- include: trailing
-- include: charged

local WORKERS, RECLAIM = KEYS[6], KEYS[7]
local lease, most = tonumber(ARGV[1]), tonumber(ARGV[2])

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

-- Only what was started is charged: its neighbours did not kill the worker.
local function charged_if_started(tag, message)
  if redis.call('HEXISTS', STARTED, tag) == 0 then return message end
  local worker = redis.call('HGET', WORKERS, string.match(tag, '^[^:]*')) or 'a worker'
  return charged(message, 'the lease of ' .. worker .. ' ran out')
end

local expired = {}
local until_now = string.format('(%.0f', now)
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', until_now, 'LIMIT', 0, 10 * most)) do
  local fetcher, call, queue, n = string.match(tag, '^(.*):(%d+):(%d+):(%d+)$')
  expired[#expired + 1] = {
    tag = tag, fetcher = fetcher or tag,
    tonumber(call or 0), tonumber(queue or 0), tonumber(n or 0),
  }
end
table.sort(expired, function(a, b)
  if a.fetcher ~= b.fetcher then return a.fetcher < b.fetcher end
  for i = 1, 3 do
    if a[i] ~= b[i] then return a[i] < b[i] end
  end
  return a.tag < b.tag
end)

local returned, reclaimed, bytes = 0, {}, {}
-- Each push to the front passes the one before it, so the newest go first, also when it takes
-- several calls.
for i = #expired, math.max(1, #expired - most + 1), -1 do
  local tag = expired[i].tag
  local origin = redis.call('HGET', ORIGINS, tag)
  local message = message_in(redis.call('HGET', UNACKED, tag))
  local is_lost, is_back = not (message and origin), false
  if not is_lost then
    message = charged_if_started(tag, redelivered(message))
    -- A user that may not touch its queue leaves it to one that may.
    is_back = type(redis.pcall('RPUSH', origin, message)) == 'number'
  end
  if is_back then
    release(tag)
    returned = returned + 1
    local name = string.sub(origin, #ARGV[3] + 1)
    name = string.sub(name, 1, (string.find(name, ARGV[4], 1, true) or 0) - 1)
    reclaimed[name] = (reclaimed[name] or 0) + 1
    bytes[name] = (bytes[name] or 0) + #message
  end
  if is_lost then
    redis.call('ZREM', LEASES, tag)
    redis.call('HDEL', STARTED, tag)
    free_slots(tag)
  end
end

-- A worker of another app, or of another version, may not know the queue.
for name, count in pairs(reclaimed) do
  local ledger, bell = ARGV[5] .. name, ARGV[6] .. name
  if redis.call('EXISTS', ledger) == 1 then
    redis.call('HINCRBY', ledger, 'unacked', -count)
    redis.call('HINCRBY', ledger, 'reclaimed', count)
    redis.call('HINCRBY', ledger, 'bytes', bytes[name])
  end
  ring(bell)
end
return returned
