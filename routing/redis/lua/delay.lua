-- delay: keep messages of one queue until they are due, within its bound for delayed messages.
--
-- KEYS:  1 delayed set of the queue         2 delayed messages of the queue
--        3 delayed count, which keeps equal messages apart
--        4 bell of the queue
--        5 ledger hash of the queue, or the first key for none
--        6 ready list that the messages go to when they are due
--        7 dropped list of the queue        8 dead letters of the queue
--        9 claim of delayed room           10 draining flag of the queue
-- ARGV:  1 max_delayed, 0 for none
--        2 "reject", "block", "drop_oldest", "drop_newest" or "dead_letter": what the bound does;
--          the oldest of delayed messages are those that are due first
--        3 "exempt" when the work was accepted before (retries, links, chord bodies),
--          "whole" to let in all of the messages or none, "none" to let in none, else "";
--          with "block", what does not fit is not counted as refused until it comes as "none";
--          "drop_oldest" makes room on any terms
--        4 most dead letters that are kept
--        5 evidence of a dead letter: a JSON object without its first brace
--        6 who delays, when it may have claimed room, else ""
--        then per message: milliseconds from now until it is due, its id, its JSON text;
--        without any, nothing is changed
-- Reply: {accepted, messages delayed before, dropped,
--         "1" when it is draining and takes none but exempt ones, else ""}
--        the first `accepted` messages are the queue's; `dropped` were dropped by the policy,
--        of these or of those that were delayed. With "drop_oldest", the others come again: room for
--        them is made piece by piece

local DELAYED, PAYLOADS, LIST, ledger = KEYS[1], KEYS[2], KEYS[6], KEYS[5]
local limit, policy, terms, first = tonumber(ARGV[1]), ARGV[2], ARGV[3], 7
local count = (#ARGV - first + 1) / 3
-- include: kinds
-- include: claimed
local wrong = misused('zset', DELAYED) or misused('hash', PAYLOADS, KEYS[9])
  or misused('list', KEYS[4], LIST, KEYS[7], KEYS[8])
  or (ledger ~= DELAYED and misused('hash', ledger))
if wrong then return wrong end
local waiting = redis.call('ZCARD', DELAYED)
-- include: draining
local drains = draining(KEYS[10])
-- Room that a group waits for is taken already, to everybody else.
if policy == 'block' and terms ~= 'exempt' then
  waiting = waiting + claimed_by_others(KEYS[9], ARGV[6])
end
if count == 0 or drains ~= '' then return {0, waiting, 0, drains} end

-- include: time
-- include: bell
-- include: trailing
-- include: delayed
-- include: limits
-- include: drop
-- include: take_delayed
-- include: keep_delayed

-- Which of the new messages are kept: all from `low` to `high`.
local low, high, leaving = 1, count, 0
if limit > 0 and terms ~= 'exempt' then
  if policy == 'drop_oldest' then
    low = math.max(1, count - limit + 1)
    leaving = math.max(0, waiting + high - low + 1 - limit)
  elseif terms == 'none' then
    high = 0
  else
    high = math.max(0, math.min(count, limit - waiting))
    if terms == 'whole' and high < count then high = 0 end
  end
end

-- The key may hold something else, so the numbers come before anything is taken.
local number, misnumbered = 0, nil
if high >= low then number, misnumbered = numbers(KEYS[3], high - low + 1) end
if misnumbered then return misnumbered end

local refuses = policy == 'reject' or policy == 'block'
local gone, left = take_delayed(leaving)
if left < leaving then high = math.max(low - 1, high - leaving + left) end
local accepted = refuses and high - low + 1 or policy == 'drop_oldest' and high or count
for i = 1, refuses and 0 or accepted do
  if i < low or i > high then gone[#gone + 1] = ARGV[first + i * 3 - 1] end
end

local before = first_due(DELAYED) or math.huge
local earliest = keep_delayed(low, high, number)

if #gone > 0 then
  local dead = {}
  for i, payload in ipairs(gone) do
    gone[i] = with_object(payload, '"at":' .. whole(now))
    dead[i] = gone[i]
  end
  keep_dropped(ledger, KEYS[7], gone, policy)
  if policy == 'dead_letter' then keep_dead(ledger, KEYS[8], dead, ARGV[5], tonumber(ARGV[4])) end
  redis.call('HINCRBY', ledger, policy == 'dead_letter' and 'dead' or 'dropped', #gone)
end
if ledger ~= KEYS[1] then
  if accepted > 0 then redis.call('HINCRBY', ledger, 'accepted', accepted) end
  if refuses and accepted < count and (policy == 'reject' or terms == 'none') then
    redis.call('HINCRBY', ledger, 'refused', count - accepted)
  end
  local over = waiting + count - limit
  if terms == 'exempt' and limit > 0 and over > 0 then
    redis.call('HINCRBY', ledger, 'overshoot', math.min(over, count))
  end
end
-- A worker that waits knows when the next message is due; it must hear of an earlier one.
if earliest < before then ring(KEYS[4]) end
return {accepted, waiting, #gone, ''}
