-- revive: take dead letters of a queue out, to run again in a queue, or for good.
--
-- KEYS:  1 dead letters of the queue
--        2 ledger hash of the queue, or the first key for none
--        3 ready list that they go to
--        4 bell of its queue       5 ledger hash of its queue, or the first key for none
--        then every ready list of its queue
-- ARGV:  1 max_length of its queue, 0 for none: nothing is refused, what is above counts as overshoot
--        2... in turn: payload of a letter, payload to append in its place or "" to drop it
-- Reply: {for each letter 1, or 0 when it is gone: somebody else took it}

-- include: time
-- include: bell
-- include: trailing

local dead, old, ready, bell, new = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local limit = tonumber(ARGV[1])
local reply, replayed, dropped, bytes = {}, 0, 0, 0

for i = 2, #ARGV, 2 do
  -- The oldest is the last one, and the first to be asked for.
  local found = redis.call('LREM', dead, -1, ARGV[i])
  local payload = ARGV[i + 1]
  if found == 1 and payload ~= '' then
    -- Its age counts from now, or max_age would end it at once.
    payload = with_object(payload, '"at":' .. whole(now))
    redis.call('LPUSH', ready, payload)
    replayed, bytes = replayed + 1, bytes + #payload
  elseif found == 1 then
    dropped = dropped + 1
  end
  reply[#reply + 1] = found
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
