-- postpone: put a fetched message that is not due yet among the delayed ones of its queue.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 deliveries hash            6 started hash
--        7 delayed set of the queue         8 delayed messages of the queue
--        9 delayed count, which keeps equal messages apart
--        10 ledger hash of the queue, or the first key for none
--        11 bell of the queue
-- ARGV:  1 tag    2 message id    3 time in ms at which it is due
-- Reply: 1, or 0 when the tag is gone

local UNACKED, INDEX, LEASES, ORIGINS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local tag, list = ARGV[1], redis.call('HGET', KEYS[4], ARGV[1])
local record = redis.call('HGET', UNACKED, tag)
local text = record and list and string.match(record, '^%[(.*),"",".-"%]$')
if not text then return 0 end

redis.call('HDEL', UNACKED, tag)
redis.call('ZREM', INDEX, tag)
redis.call('ZREM', LEASES, tag)
redis.call('HDEL', ORIGINS, tag)
redis.call('HDEL', KEYS[6], tag)
-- A time that has passed makes a message due now: its age counts from then.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local due = math.max(tonumber(ARGV[3]), now)
local first_due = tonumber(redis.call('ZRANGE', KEYS[7], 0, 0, 'WITHSCORES')[2] or math.huge)
local member = string.format('%016.0f#', redis.call('INCR', KEYS[9])) .. ARGV[2]
redis.call('ZADD', KEYS[7], string.format('%.0f', due), member)
redis.call('HSET', KEYS[8], member, #list .. ':' .. list .. text)
if KEYS[10] ~= KEYS[1] then redis.call('HINCRBY', KEYS[10], 'unacked', -1) end
-- A worker that waits knows when the next message is due; it must hear of an earlier one.
if due < first_due and redis.call('EXISTS', KEYS[11]) == 0 then
  redis.call('LPUSH', KEYS[11], '1')
  redis.call('PEXPIRE', KEYS[11], 3600000)
end
return 1
