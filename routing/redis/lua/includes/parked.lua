-- Calls a function with every list of messages that are parked of a ready list; returns how many
-- messages these have.
local function each_parked(blocked, parked, ready, call)
  local count = 0
  for _, gate in ipairs(redis.call('ZRANGE', blocked, 0, -1)) do
    local list = parked .. #ready .. ':' .. ready .. gate
    count = count + redis.call('LLEN', list)
    call(list)
  end
  return count
end
