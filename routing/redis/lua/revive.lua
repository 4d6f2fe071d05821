-- revive: take dead letters of a queue out, to run again in a queue, or for good.
--
-- KEYS:  1 dead letters of the queue
--        2 ledger hash of the queue, or the first key for none
--        3 ready list that they go to
--        4 bell of its queue       5 ledger hash of its queue, or the first key for none
--        then every ready list of its queue
-- ARGV:  1 max_length of its queue, 0 for none: nothing is refused, what is above counts as overshoot
--        2... in turn: index of a letter in the list, its payload, payload to append in its place or
--        "" to drop it
-- Reply: {for each of the first letters 1, or 0 when it is not there, which is the last one}; the
--         others come again: the deeper in the list letters stand, the fewer are looked at

-- include: kinds
-- include: time
-- include: bell
-- include: trailing

local dead, old, ready, bell, new = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local limit, length = tonumber(ARGV[1]), 0
local wrong = misused('list', dead, ready, bell, unpack(KEYS, 6))
  or (old ~= dead and misused('hash', old)) or (new ~= dead and misused('hash', new))
if wrong then return wrong end
length = redis.call('LLEN', dead)

-- Which of them are where they are said to be. Reaching one costs by its distance from the nearer end.
local reply, found, taken, steps = {}, {}, {}, 0
local i, is_there = 2, true
while i < #ARGV and is_there and steps < 400000 do
  local index = tonumber(ARGV[i])
  local at = index < 0 and length + index or index
  is_there = not taken[at] and redis.call('LINDEX', dead, at) == ARGV[i + 1]
  if is_there then taken[at], found[#found + 1] = true, {at, ARGV[i + 2]} end
  reply[#reply + 1] = is_there and 1 or 0
  steps, i = steps + 500 + math.min(at, length - 1 - at), i + 3
end

-- All that are taken get one value, which is removed in one go from the nearer end. The first write
-- removes, so that a full server can be relieved.
local replayed, dropped, bytes = 0, 0, 0
if #found > 0 then redis.call('LTRIM', dead, 0, -1) end
for _, one in ipairs(found) do redis.call('LSET', dead, one[1], 'celeriac: taken') end
local from_head = #found > 0 and found[1][1] < length / 2
if #found > 0 then redis.call('LREM', dead, from_head and #found or -#found, 'celeriac: taken') end
for _, one in ipairs(found) do
  local payload = one[2]
  if payload == '' then
    dropped = dropped + 1
  else
    -- Its age counts from now, or max_age would end it at once.
    payload = with_object(payload, '"at":' .. whole(now))
    redis.call('LPUSH', ready, payload)
    replayed, bytes = replayed + 1, bytes + #payload
  end
end

if dropped > 0 and old ~= dead then redis.call('HINCRBY', old, 'dead_trimmed', dropped) end
if replayed > 0 then
  if new ~= dead then
    redis.call('HINCRBY', new, 'replayed', replayed)
    redis.call('HINCRBY', new, 'bytes', bytes)
    local waiting = -limit
    for k = 6, #KEYS do waiting = waiting + redis.call('LLEN', KEYS[k]) end
    if limit > 0 and waiting > 0 then
      redis.call('HINCRBY', new, 'overshoot', math.min(waiting, replayed))
    end
  end
  ring(bell)
end
return reply
