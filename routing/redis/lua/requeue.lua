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
--        that cannot be run now, which waits among the delayed ones, and notes how often it did;
--        "again" for one whose run failed through no fault of its own, which does so for longer
-- Reply: {messages that went back, how many of the first were not looked at}; the newest come first,
--         tags that are gone are passed over

-- include: kinds
-- include: time
-- include: bell
-- include: gate
-- include: records
-- include: trailing
-- include: delayed
-- include: charged
-- include: limits

-- What counts how often a message waited, and the seconds that it does so the first time.
local WAITS = {later = {'returned', 1}, again = {'rounds', 5}}

local wrong = misused('list', KEYS[6]) or misused('hash', KEYS[7], KEYS[9]) or misused('zset', KEYS[8])
if wrong then return wrong end

-- What goes back is read first: each has its own list. The newest goes first, as each push to the
-- front passes the one before it.
local held, tags, seen, lists, size, late, left = {}, {}, {}, {}, 0, 0, #ARGV / 4
while left > 0 and size < MOST_BYTES do
  local at = 4 * left - 3
  local origin = redis.call('HGET', ORIGINS, ARGV[at])
  local message = origin and message_in(redis.call('HGET', UNACKED, ARGV[at]))
  if message and not seen[ARGV[at]] then
    held[#held + 1], lists[origin], size = {at, origin, message}, true, size + #message
    tags[#tags + 1], seen[ARGV[at]] = ARGV[at], true
    if WAITS[ARGV[at + 2]] then late = late + 1 end
  end
  left = left - 1
end
for list in pairs(lists) do
  wrong = wrong or misused('list', list)
end
if wrong then return wrong end
-- Removing comes first, so that a full server lets messages go back.
redis.call('HDEL', UNACKED, '')
local number, misnumbered = 0, nil
if late > 0 then number, misnumbered = numbers(KEYS[10], late) end
if misnumbered then return misnumbered end

local later, back, bytes = {}, {}, 0
if #held > 0 then release(unpack(tags)) end
for _, one in ipairs(held) do
  local at, origin, message = unpack(one)
  local id, mark = ARGV[at + 1], ARGV[at + 2]
  if mark ~= '' then message = redelivered(message) end
  if mark == 'counted' then message = charged(message, ARGV[at + 3]) end
  if WAITS[mark] then
    local name, seconds = unpack(WAITS[mark])
    local times = count_in(message, name)
    message = with_latest(message, '"' .. name .. '":%d+', '"' .. name .. '":' .. whole(times + 1))
    later[#later + 1] = {origin, id, message, seconds * 2 ^ math.min(times, 6)}
  else
    back[origin] = back[origin] or {}
    table.insert(back[origin], message)
    bytes = bytes + #message
  end
end

for list, messages in pairs(back) do
  redis.call('RPUSH', list, unpack(messages))
end

-- These wait until they are tried again: twice as long each time, a minute at most.
local returned = #held
local is_news = returned > #later
if #later > 0 then
  local before = first_due(KEYS[8]) or math.huge
  for i, one in ipairs(later) do
    local list, id, message, seconds = unpack(one)
    local due = now + 1000 * math.min(60, seconds)
    local member = member_of(number - i + 1, id)
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
return {returned, left}
