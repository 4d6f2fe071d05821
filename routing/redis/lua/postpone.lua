-- postpone: put a fetched message that is not due yet among the delayed ones of its queue.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 started hash
--        6 delayed set of the queue         7 delayed messages of the queue
--        8 delayed count, which keeps equal messages apart
--        9 ledger hash of the queue, or the first key for none
--        10 bell of the queue
-- ARGV:  1 tag    2 message id    3 time in ms at which it is due
-- Reply: 1, or 0 when the tag is gone

-- include: kinds
-- include: time
-- include: bell
-- include: gate
-- include: records
-- include: delayed

local wrong = misused('zset', KEYS[6]) or misused('hash', KEYS[7], KEYS[9]) or misused('list', KEYS[10])
if wrong then return wrong end
local tag, list = ARGV[1], redis.call('HGET', ORIGINS, ARGV[1])
local payload = list and message_in(redis.call('HGET', UNACKED, tag))
if not payload then return 0 end

-- Removing comes first: a full server must let a message go on its way.
redis.call('HDEL', UNACKED, '')
local number, misnumbered = numbers(KEYS[8], 1)
if misnumbered then return misnumbered end
release(tag)
-- A time that has passed makes a message due now: its age counts from then.
local due, before = math.max(tonumber(ARGV[3]), now), first_due(KEYS[6]) or math.huge
local member = member_of(number, ARGV[2])
redis.call('ZADD', KEYS[6], whole(due), member)
redis.call('HSET', KEYS[7], member, value_of(list, payload))
if KEYS[9] ~= KEYS[1] then redis.call('HINCRBY', KEYS[9], 'unacked', -1) end
-- A worker that waits knows when the next message is due; it must hear of an earlier one.
if due < before then ring(KEYS[10]) end
return 1
