-- A gate has slots, which all workers share: a hash, slot -> messages that hold it. What a tag holds is
-- noted beside it (its queue, then slot and gate in turn, each a line), so whatever takes a tag out
-- frees its slots, also when its worker has died. The names follow that of the leases; routing/redis/keys.py
-- has them too. A gate's key of another type holds no slots, and keeps nothing from ending.

local OURS = string.match(KEYS[3], '^(.*)leases$')
local GATED = OURS .. 'gated'
local misused_gated, gated = misused('hash', GATED)
if misused_gated then return misused_gated end
local is_gated = gated[1] > 0

-- Lets workers look at a queue in which nothing could start.
local function wake(queue)
  local bell = OURS .. 'bell:' .. queue
  if redis.call('DEL', bell .. SHUT) == 1 then ring(bell) end
end

-- What waits for a gate of a task may be in several queues.
local function tell_of(gate)
  for _, waiting in ipairs(redis.pcall('SMEMBERS', OURS .. 'waiting:' .. gate)) do
    local blocked = OURS .. 'blocked:' .. waiting
    local at = redis.pcall('ZSCORE', blocked, gate)
    if type(at) == 'string' then
      redis.call('ZADD', blocked, 'XX', 'LT', whole(now), gate)
      ring(OURS .. 'bell:' .. waiting)
    elseif not at then
      -- The queue was purged meanwhile.
      redis.call('SREM', OURS .. 'waiting:' .. gate, waiting)
    end
  end
end

-- Frees the slots of tags that are taken out.
local function free_slots(...)
  if not is_gated then return end
  local tags, seen, freed, queues = {...}, {}, {}, {}
  for i, held in ipairs(redis.call('HMGET', GATED, ...)) do
    local queue, slots = string.match(not seen[tags[i]] and held or '', '^([^\n]*)\n(.*)$')
    for slot, gate in string.gmatch(slots or '', '([^\n]*)\n([^\n]*)\n') do
      local key = OURS .. 'gate:' .. gate
      if (tonumber(redis.pcall('HINCRBY', key, slot, -1)) or 1) <= 0 then
        redis.call('HDEL', key, slot)
        freed[gate], queues[queue] = true, true
      end
    end
    seen[tags[i]] = true
  end
  redis.call('HDEL', GATED, ...)
  for queue in pairs(queues) do wake(queue) end
  for gate in pairs(freed) do tell_of(gate) end
end
