-- A gate has slots, which all workers share: a hash, slot -> messages that hold it. What a tag holds is
-- noted beside it (its queue, then slot and gate in turn, each a line), so whatever takes a tag out
-- frees its slots, also when its worker has died. The names follow that of the leases; routing/redis/keys.py
-- has them too.

local OURS = string.match(KEYS[3], '^(.*)leases$')
local GATED, is_gated = OURS .. 'gated', nil

-- Lets workers look at a queue in which nothing could start.
local function wake(queue)
  local bell = OURS .. 'bell:' .. queue
  if redis.call('DEL', bell .. SHUT) == 1 then ring(bell) end
end

-- What waits for a gate of a task may be in several queues.
local function tell_of(gate, queue)
  wake(queue)
  for _, waiting in ipairs(redis.call('SMEMBERS', OURS .. 'waiting:' .. gate)) do
    local blocked = OURS .. 'blocked:' .. waiting
    if redis.call('ZSCORE', blocked, gate) then
      redis.call('ZADD', blocked, 'XX', 'LT', whole(now), gate)
      ring(OURS .. 'bell:' .. waiting)
    else
      -- The queue was purged meanwhile.
      redis.call('SREM', OURS .. 'waiting:' .. gate, waiting)
    end
  end
end

-- Frees the slots of tags that are taken out.
local function free_slots(...)
  if is_gated == nil then is_gated = redis.call('EXISTS', GATED) == 1 end
  if not is_gated then return end
  local freed = {}
  for _, held in ipairs(redis.call('HMGET', GATED, ...)) do
    local queue, slots = string.match(held or '', '^([^\n]*)\n(.*)$')
    for slot, gate in string.gmatch(slots or '', '([^\n]*)\n([^\n]*)\n') do
      local key = OURS .. 'gate:' .. gate
      if redis.call('HINCRBY', key, slot, -1) <= 0 then
        redis.call('HDEL', key, slot)
        freed[gate] = queue
      end
    end
  end
  redis.call('HDEL', GATED, ...)
  for gate, queue in pairs(freed) do tell_of(gate, queue) end
end
