-- push: append messages to one queue, within its bounds.
--
-- KEYS:  1 ready list of the messages' priority
--        2 bell of the queue
--        3 ledger hash of the queue, or the first key for none
--        4 dropped list of the queue, or the first key for none
--        5 dead letters of the queue, or the first key for none
--        6 draining flag of the queue   7 pace hash of the queue   8 consumers set of the queue
--        9 claim of the queue, or the first key for none
--        then, for a queue with a bound, every ready list in the order to pop: they are what waits
-- ARGV:  1 max_length, 0 for none
--        2 max_bytes of what waits, 0 for none
--        3 "reject", "block", "drop_oldest", "drop_newest" or "dead_letter": what a bound does
--        4 "exempt" when the work was accepted before (retries, links, chord bodies),
--          "whole" to let in all of the messages or none, "none" to let in none, else "";
--          with "block", what does not fit is not counted as refused until it comes as "none";
--          "drop_oldest" makes room on any terms
--        5 most dead letters that are kept
--        6 evidence of a dead letter as JSON without the opening brace
--        7 who pushes, when it may have claimed room, else ""
--        8... the messages, oldest first, as JSON; without any, nothing is changed
-- Reply: {accepted, messages waiting before, bytes waiting before, dropped,
--         age of the oldest waiting message in ms when refused messages were counted, else 0,
--         "1" when it is draining and takes none but exempt ones, else "", and with such an age:
--         microseconds from one ending to the next, 0 for unknown, and number of its live consumers}
--        the first `accepted` messages are the queue's; `dropped` were dropped by the policy,
--        of these or of those that waited. With "drop_oldest", the others come again: room for them
--        is made piece by piece

local limit, max_bytes, policy, terms = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local ledger, first, count = KEYS[3], 8, #ARGV - 7
local bounded = limit > 0 or max_bytes > 0
local blocked, waiting, bytes = 0, 0, 0

-- include: kinds
-- include: claimed
local wrong = misused('list', KEYS[1], KEYS[2], KEYS[4], KEYS[5], unpack(KEYS, 10))
  or (ledger ~= KEYS[1] and misused('hash', ledger))
  or (bounded and (misused('hash', KEYS[7], KEYS[9]) or misused('zset', KEYS[8])))
if wrong then return wrong end
-- What is blocked waits, too, but none of it is dropped.
if bounded then blocked = tonumber(redis.call('HGET', ledger, 'blocked') or 0) end
waiting = blocked
for k = 10, #KEYS do waiting = waiting + redis.call('LLEN', KEYS[k]) end
if max_bytes > 0 and waiting > 0 then
  bytes = math.max(0, tonumber(redis.call('HGET', ledger, 'bytes') or 0))
end
-- Room that a group waits for is taken already, to everybody else.
if policy == 'block' and bounded and terms ~= 'exempt' then
  local messages, size = claimed_by_others(KEYS[9], ARGV[7])
  waiting, bytes = waiting + messages, bytes + size
end
-- include: draining
local drains = draining(KEYS[6])
if count == 0 or drains ~= '' then return {0, waiting, bytes, 0, 0, drains} end

-- include: time
-- include: bell
-- include: trailing
-- include: limits
-- include: drop
-- include: pace
-- include: prospects
-- The message keeps the server's time: protocol 2 has no timestamp, and no other clock decides its age.
local stamp = '"at":' .. whole(now)
local function stamped(i) return with_object(ARGV[first + i - 1], stamp) end
local function size_of(i) return #ARGV[first + i - 1] + #stamp + #',"celeriac":{}' end
-- include: room

-- Which of the new messages are appended: all from `low` to `high`.
local low, high, gone, change = 1, count, {}, 0
if bounded and terms ~= 'exempt' and policy == 'drop_oldest' then
  low = count - fitting(count, -1, limit - blocked, max_bytes) + 1
  gone, change = make_room(low)
  local fits = fitting(low, 1, limit - waiting + #gone, max_bytes - bytes + change)
  high = #gone < waiting - blocked and low - 1 + fits or count
  -- What is blocked keeps its bytes, though nothing else waits any more.
  local kept = blocked > 0 and #gone == waiting - blocked and math.max(0, bytes - change) or 0
  if kept > 0 then low = count - fitting(count, -1, limit - blocked, max_bytes - kept) + 1 end
  change = -change
elseif bounded and terms ~= 'exempt' then
  high = terms == 'none' and 0 or fitting(1, 1, limit - waiting, max_bytes - bytes)
  if terms == 'whole' and high < count then high = 0 end
end
local payloads = {}
for i = low, high do
  payloads[#payloads + 1] = stamped(i)
  change = change + #payloads[#payloads]
end
append(KEYS[1], payloads)
local refuses = policy == 'reject' or policy == 'block'
local accepted = refuses and #payloads or policy == 'drop_oldest' and high or count
local dropped = refuses and 0 or accepted - #payloads + #gone
local refused = refuses and (policy ~= 'block' or terms == 'none') and count - accepted or 0

if dropped > 0 then
  local dead, from = {}, policy == 'drop_oldest' and 1 or high + 1
  for i = from, from + accepted - #payloads - 1 do
    gone[#gone + 1] = stamped(i)
    if policy == 'dead_letter' then dead[#dead + 1] = gone[#gone] end
  end
  keep_dropped(ledger, KEYS[4], gone, policy)
  if #dead > 0 then keep_dead(ledger, KEYS[5], dead, ARGV[6], tonumber(ARGV[5])) end
  redis.call('HINCRBY', ledger, policy == 'dead_letter' and 'dead' or 'dropped', dropped)
end

if ledger ~= KEYS[1] then
  if accepted > 0 then redis.call('HINCRBY', ledger, 'accepted', accepted) end
  if change ~= 0 then redis.call('HINCRBY', ledger, 'bytes', change) end
  if refused > 0 then redis.call('HINCRBY', ledger, 'refused', refused) end
  local fits = terms == 'exempt' and bounded and fitting(1, 1, limit - waiting, max_bytes - bytes) or count
  if fits < count then redis.call('HINCRBY', ledger, 'overshoot', count - fits) end
end

if #payloads > 0 then ring(KEYS[2]) end
return prospects(refused, {accepted, waiting, bytes, dropped, 0, ''})
