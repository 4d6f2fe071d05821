-- requeue: return held messages to the front of their queue, in the order they were fetched; at
-- once, or after a delay that doubles each time.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 started hash
--        6 bell of the queue       7 ledger hash of the queue, or the first key for none
--        8 delayed set of the queue         9 delayed messages of the queue
--        10 delayed count, which keeps equal messages apart
-- ARGV:  tag, message id, mark and evidence in turn, in fetch order; the mark is "" for a message
--        that nobody may have begun, "redelivered" for one that may have run in part, "counted"
--        when that counts as a delivery too; the evidence says why it was charged; "later" for one
--        that cannot be run now, which waits among the delayed ones, and notes how often it did
-- Reply: number of messages that went back (tags that are gone are passed over)

-- include: time
-- include: bell
-- include: gate
-- include: records
-- include: trailing
-- include: delayed
-- include: charged

local returned, bytes = 0, 0

local later = {}
-- Each push to the front passes the one before it, so the newest goes first.
for i = #ARGV - 3, 1, -4 do
  local tag, id, mark = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local origin = redis.call('HGET', ORIGINS, tag)
  local message = origin and message_in(redis.call('HGET', UNACKED, tag))
  if message then
    release(tag)
    if mark ~= '' then message = redelivered(message) end
    if mark == 'counted' then message = charged(message, ARGV[i + 3]) end
    if mark == 'later' then
      local times = count_in(message, 'returned')
      message = with_latest(message, '"returned":%d+', '"returned":' .. whole(times + 1))
      later[#later + 1] = {origin, id, message, times}
    else
      redis.call('RPUSH', origin, message)
      bytes = bytes + #message
    end
    returned = returned + 1
  end
end

-- These wait until they are tried again: 1 s the first time, a minute at most.
local is_news = returned > #later
if #later > 0 then
  local before = first_due(KEYS[8]) or math.huge
  local sequence = redis.call('INCRBY', KEYS[10], #later)
  for i, one in ipairs(later) do
    local list, id, message, times = unpack(one)
    local due = now + 1000 * math.min(60, 2 ^ math.min(times, 6))
    local member = member_of(sequence - i + 1, id)
    redis.call('ZADD', KEYS[8], whole(due), member)
    redis.call('HSET', KEYS[9], member, value_of(list, message))
    -- A worker that waits knows when the next message is due; it must hear of an earlier one.
    is_news = is_news or due < before
  end
end

if returned > 0 then
  if KEYS[7] ~= KEYS[1] then
    redis.call('HINCRBY', KEYS[7], 'unacked', -returned)
    redis.call('HINCRBY', KEYS[7], 'given_back', returned)
    redis.call('HINCRBY', KEYS[7], 'bytes', bytes)
  end
  if is_news then ring(KEYS[6]) end
end
return returned
