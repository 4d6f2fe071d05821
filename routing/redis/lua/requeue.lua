-- requeue: return held messages to the front of their queue, in the order they were fetched; at
-- once, or after a delay that doubles each time.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 deliveries hash            6 started hash
--        7 bell of the queue       8 ledger hash of the queue, or the first key for none
--        9 delayed set of the queue         10 delayed messages of the queue
--        11 delayed count, which keeps equal messages apart
-- ARGV:  tag, message id, mark and evidence in turn, in fetch order; the mark is "" for a message
--        that nobody may have begun, "redelivered" for one that may have run in part, "counted"
--        when that counts as a delivery too; the evidence says why it was charged; "later" for one
--        that cannot be run now, which waits among the delayed ones, and notes how often it did
-- Reply: number of messages that went back (tags that are gone are passed over)

-- include: records
-- include: time
-- include: bell
-- include: trailing
-- include: delayed
-- include: count_delivery

local returned, bytes = 0, 0

-- Notes in the trailing object that a payload was requeued once more; returns also how often before.
local function counted(payload)
  local object = object_in(payload)
  local before = object and string.match(object, '"returned":(%d+)')
  if not object then return payload, 0 end
  if not before then return with_entry(payload, '"returned":1'), 0 end
  local entry = '"returned":' .. whole(before + 1)
  return string.sub(payload, 1, -#object - 1) .. string.gsub(object, '"returned":%d+', entry), tonumber(before)
end

local later = {}
-- Each push to the front passes the one before it, so the newest goes first.
for i = #ARGV - 3, 1, -4 do
  local tag, id, mark = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local origin = redis.call('HGET', ORIGINS, tag)
  local message = origin and message_in(redis.call('HGET', UNACKED, tag))
  if message then
    release(tag)
    if mark ~= '' then message = redelivered(message) end
    if mark == 'later' then
      later[#later + 1] = {origin, id, counted(message)}
    else
      redis.call('RPUSH', origin, message)
      bytes = bytes + #message
    end
    if mark == 'counted' and id ~= '' then count_delivery(id, ARGV[i + 3]) end
    returned = returned + 1
  end
end

-- These wait until they are tried again: 1 s the first time, a minute at most.
local is_news = returned > #later
if #later > 0 then
  local before = first_due(KEYS[9]) or math.huge
  local sequence = redis.call('INCRBY', KEYS[11], #later)
  for i, one in ipairs(later) do
    local list, id, message, times = unpack(one)
    local due = now + 1000 * math.min(60, 2 ^ math.min(times, 6))
    local member = member_of(sequence - i + 1, id)
    redis.call('ZADD', KEYS[9], whole(due), member)
    redis.call('HSET', KEYS[10], member, value_of(list, message))
    -- A worker that waits knows when the next message is due; it must hear of an earlier one.
    is_news = is_news or due < before
  end
end

if returned > 0 then
  if KEYS[8] ~= KEYS[1] then
    redis.call('HINCRBY', KEYS[8], 'unacked', -returned)
    redis.call('HINCRBY', KEYS[8], 'given_back', returned)
    redis.call('HINCRBY', KEYS[8], 'bytes', bytes)
  end
  if is_news then ring(KEYS[7]) end
end
return returned
