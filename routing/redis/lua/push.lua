-- push: append messages to one queue, within its bounds.
--
-- KEYS:  1 ready list of the messages' priority
--        2 bell of the queue
--        3 ledger hash of the queue, or the first key for none
--        4 dropped list of the queue, or the first key for none
--        5 dead letters of the queue, or the first key for none
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
--        7... the messages, oldest first, as JSON texts; without any, nothing is changed
-- Reply: {accepted, messages waiting before, bytes waiting before, dropped,
--         age of the oldest waiting message in ms when refused messages were counted, else 0}
--        the first `accepted` messages are the queue's; `dropped` were dropped by the policy,
--        of these or of those that waited

local limit, max_bytes, policy, mode = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local ledger, first, count = KEYS[3], 7, #ARGV - 6
local bounded = limit > 0 or max_bytes > 0
local waiting, bytes = 0, 0

if bounded then
  for k = 6, #KEYS do waiting = waiting + redis.call('LLEN', KEYS[k]) end
  if max_bytes > 0 and waiting > 0 then
    bytes = math.max(0, tonumber(redis.call('HGET', ledger, 'bytes') or 0))
  end
end
if count == 0 then return {0, waiting, bytes, 0, 0} end

-- The message keeps the server's time: protocol 2 has no timestamp, and no other clock decides its age.
local time = redis.call('TIME')
local now = time[1] .. string.format('%03d', math.floor(tonumber(time[2]) / 1000))
local stamp = ',"celeriac":{"at":' .. now .. '}}'

local function stamped(i)
  local text = ARGV[first + i - 1]
  if string.sub(text, -1) ~= '}' then text = string.match(text, '^(.*})%s*$') or text end
  if string.sub(text, -1) == '}' then text = string.sub(text, 1, -2) .. stamp end
  return text
end

-- A text with one more entry in its trailing object; what another producer wrote has none yet.
local function marked(text, mark)
  local head = string.match(text, '^(.*,"celeriac":{[^{}]*)}}$')
  if head then return head .. ',' .. mark .. '}}' end
  head = string.match(text, '^(.*)}%s*$')
  return head and (head .. ',"celeriac":{' .. mark .. '}}') or text
end

-- How many messages fit into so much room, counted from one end of the new ones.
local function fitting(from, step, room_count, room_bytes)
  if max_bytes == 0 then return math.max(0, math.min(count, room_count)) end
  local n, size = 0, 0
  for i = from, from + step * (count - 1), step do
    size = size + #ARGV[first + i - 1] + #stamp - 1
    if (limit > 0 and n >= room_count) or size > room_bytes then break end
    n = n + 1
  end
  return n
end

local function append(list, texts)
  for i = 1, #texts, 3500 do
    redis.call('LPUSH', list, unpack(texts, i, math.min(i + 3499, #texts)))
  end
end

-- Cuts a list to its newest; what fell out is counted.
local function trim(list, most, counter)
  local over = redis.call('LLEN', list) - most
  if over > 0 then
    redis.call('LTRIM', list, 0, most - 1)
    redis.call('HINCRBY', ledger, counter, over)
  end
end

-- Which of the new messages are appended: all from `low` to `high`.
local low, high = 1, count
local gone, change = {}, 0
if bounded and mode ~= 'exempt' then
  if policy == 'drop_oldest' then
    low = count - fitting(count, -1, limit, max_bytes) + 1
    local size = 0
    for i = low, high do size = size + #ARGV[first + i - 1] + #stamp - 1 end
    local left, left_bytes = waiting, bytes
    for k = #KEYS, 6, -1 do
      while left > 0 do
        local most = limit > 0 and left + count - low + 1 - limit or 0
        if most <= 0 and max_bytes > 0 and left_bytes + size > max_bytes then most = 1 end
        local popped = most > 0 and redis.call('RPOP', KEYS[k], math.min(most, 1000))
        if not popped then break end
        for _, text in ipairs(popped) do
          gone[#gone + 1] = text
          left, left_bytes, change = left - 1, left_bytes - #text, change - #text
        end
      end
    end
  elseif mode == 'none' then
    high = 0
  else
    high = fitting(1, 1, limit - waiting, max_bytes - bytes)
    if mode == 'whole' and high < count then high = 0 end
  end
end

local texts = {}
for i = low, high do
  local text = stamped(i)
  texts[#texts + 1], change = text, change + #text
end
append(KEYS[1], texts)

local over = count - #texts
local accepted, dropped = count, over + #gone
if policy == 'reject' or policy == 'block' then
  accepted, dropped = #texts, 0
end
local refused = (policy ~= 'block' or mode == 'none') and count - accepted or 0

if dropped > 0 then
  for i, text in ipairs(gone) do gone[i] = marked(text, '"dropped":"' .. policy .. '"') end
  local from = policy == 'drop_oldest' and 1 or high + 1
  local dead = {}
  for i = from, from + over - 1 do
    local text = stamped(i)
    gone[#gone + 1] = marked(text, '"dropped":"' .. policy .. '"')
    if policy == 'dead_letter' then
      dead[#dead + 1] = marked(text, '"dead":{"at":' .. now .. ',' .. ARGV[6])
    end
  end
  -- For the workers, which give each a final state; at most 64 MB of messages of this size.
  append(KEYS[4], gone)
  trim(KEYS[4], math.max(100, math.min(10000, math.floor(67108864 / #gone[#gone]))), 'results_lost')
  if #dead > 0 then
    append(KEYS[5], dead)
    trim(KEYS[5], tonumber(ARGV[5]), 'dead_trimmed')
  end
  redis.call('HINCRBY', ledger, policy == 'dead_letter' and 'dead' or 'dropped', dropped)
end

if ledger ~= KEYS[1] then
  if accepted > 0 then redis.call('HINCRBY', ledger, 'accepted', accepted) end
  if change ~= 0 then redis.call('HINCRBY', ledger, 'bytes', change) end
  if refused > 0 then redis.call('HINCRBY', ledger, 'refused', refused) end
  if mode == 'exempt' and bounded then
    local fits = fitting(1, 1, limit - waiting, max_bytes - bytes)
    if fits < count then redis.call('HINCRBY', ledger, 'overshoot', count - fits) end
  end
end

local age = 0
if refused > 0 then
  for k = 6, #KEYS do
    local oldest = age == 0 and redis.call('LINDEX', KEYS[k], -1)
    local at = oldest and string.match(string.sub(oldest, -300), ',"celeriac":{"at":(%d+)')
    if at then age = math.max(0, tonumber(now) - tonumber(at)) end
  end
end
if #texts > 0 and redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('LPUSH', KEYS[2], '1')
  redis.call('PEXPIRE', KEYS[2], 3600000)
end
return {accepted, waiting, bytes, dropped, age}
