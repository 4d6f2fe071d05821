-- delay: keep messages of one queue until they are due, within its bound for delayed messages.
--
-- KEYS:  1 delayed set of the queue         2 delayed messages of the queue
--        3 delayed count, which keeps equal messages apart
--        4 bell of the queue
--        5 ledger hash of the queue, or "" for a queue that keeps none
--        6 ready list that the messages go to when they are due
-- ARGV:  1 max_delayed, 0 for none
--        2 "exempt" when the work was accepted before (retries, links, chord bodies),
--          "whole" to let in all of the messages or none, else ""
--        3... per message: milliseconds from now until it is due, its id, its JSON text
-- Reply: {accepted, messages delayed before}; the first `accepted` messages were kept

local DELAYED, TEXTS, LIST, ledger = KEYS[1], KEYS[2], KEYS[6], KEYS[5]
local limit, mode, first = tonumber(ARGV[1]), ARGV[2], 3
local count = (#ARGV - first + 1) / 3
local waiting = redis.call('ZCARD', DELAYED)
local room = count

if limit > 0 and mode ~= 'exempt' then
  room = math.max(0, math.min(count, limit - waiting))
  if mode == 'whole' and room < count then room = 0 end
end
if ledger ~= '' and room < count then redis.call('HINCRBY', ledger, 'refused', count - room) end
if room == 0 then return {0, waiting} end

-- Rounded up: a message is never early.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.ceil(tonumber(time[2]) / 1000)
local sequence = redis.call('INCRBY', KEYS[3], room) - room
local before = tonumber(redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')[2] or math.huge)
local earliest = math.huge
local scores, texts = {}, {}
for i = 1, room do
  local at = first + (i - 1) * 3
  local due = now + tonumber(ARGV[at])
  -- The sequence comes first, so that of messages due together the older one leaves first.
  local member = string.format('%016.0f#', sequence + i) .. ARGV[at + 1]
  scores[2 * i - 1], scores[2 * i] = string.format('%.0f', due), member
  texts[2 * i - 1], texts[2 * i] = member, #LIST .. ':' .. LIST .. ARGV[at + 2]
  earliest = math.min(earliest, due)
end
for i = 1, #scores, 3500 do
  local to = math.min(i + 3499, #scores)
  redis.call('ZADD', DELAYED, unpack(scores, i, to))
  redis.call('HSET', TEXTS, unpack(texts, i, to))
end

if ledger ~= '' then
  redis.call('HINCRBY', ledger, 'accepted', room)
  local over = waiting + room - limit
  if limit > 0 and over > 0 then redis.call('HINCRBY', ledger, 'overshoot', math.min(over, room)) end
end
-- A worker that waits knows when the next message is due; it must hear of an earlier one.
if earliest < before and redis.call('EXISTS', KEYS[4]) == 0 then
  redis.call('LPUSH', KEYS[4], '1')
  redis.call('PEXPIRE', KEYS[4], 3600000)
end
return {room, waiting}
