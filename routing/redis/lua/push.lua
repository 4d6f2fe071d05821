-- push: append messages to one queue, within its bound.
--
-- KEYS:  1 ready list of the messages' priority
--        2 bell of the queue
--        3 ledger hash of the queue, or "" for a queue that keeps none
--        4... every ready list of the queue (they are what max_length counts)
-- ARGV:  1 max_length, 0 for none
--        2 "1" when the work was accepted before (retries, links, chord bodies): never refused
--        3 "1" to accept all of the messages or none
--        4... the messages, oldest first, as JSON texts
-- Reply: {accepted, waiting before, max_length}; the first `accepted` messages were appended

local limit = tonumber(ARGV[1])
local exempt = ARGV[2] == '1'
local first = 4
local count = #ARGV - first + 1
local room, waiting = count, 0

if limit > 0 then
  for k = 4, #KEYS do
    waiting = waiting + redis.call('LLEN', KEYS[k])
  end
  if not exempt then
    room = math.max(0, math.min(count, limit - waiting))
    if ARGV[3] == '1' and room < count then room = 0 end
  end
end

local ledger = KEYS[3]
if room < count and ledger ~= '' then
  redis.call('HINCRBY', ledger, 'refused', count - room)
end
if room == 0 then return {0, waiting, limit} end

-- The message keeps the server's time: protocol 2 has no timestamp, and no other clock decides its age.
local time = redis.call('TIME')
local stamp = ',"celeriac":{"at":' .. time[1] .. string.format('%03d', math.floor(tonumber(time[2]) / 1000)) .. '}}'
local texts = {}
for i = 1, room do
  local text = ARGV[first + i - 1]
  if string.sub(text, -1) ~= '}' then text = string.match(text, '^(.*})%s*$') or text end
  if string.sub(text, -1) == '}' then text = string.sub(text, 1, -2) .. stamp end
  texts[i] = text
end
for i = 1, room, 3500 do
  redis.call('LPUSH', KEYS[1], unpack(texts, i, math.min(i + 3499, room)))
end

if ledger ~= '' then
  redis.call('HINCRBY', ledger, 'accepted', room)
  local over = waiting + room - limit
  if exempt and limit > 0 and over > 0 then
    redis.call('HINCRBY', ledger, 'overshoot', math.min(over, room))
  end
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('LPUSH', KEYS[2], '1')
  redis.call('PEXPIRE', KEYS[2], 3600000)
end
return {room, waiting, limit}
