-- The room that a push finds, or makes.

-- How many messages fit into so much room, counted from one end of the new ones.
local function fitting(from, step, room_count, room_bytes)
  local most = step > 0 and count - from + 1 or from
  if max_bytes == 0 then return math.max(0, math.min(most, room_count)) end
  local n, size = 0, 0
  for i = from, from + step * (most - 1), step do
    size = size + size_of(i)
    if (limit > 0 and n >= room_count) or size > room_bytes then break end
    n = n + 1
  end
  return n
end

-- Takes the oldest waiting messages, as long as the new ones from `low` on do not fit, and a call may
-- take more: one first, to learn the size.
local function make_room(low)
  local gone, size, taken = {}, 0, 0
  for i = low, count do size = size + size_of(i) end
  for k = #KEYS, 10, -1 do
    while #gone < math.min(waiting, MOST) and taken < MOST_BYTES do
      local most = limit > 0 and waiting - #gone + count - low + 1 - limit or 0
      if most <= 0 and max_bytes > 0 and bytes - taken + size > max_bytes then most = 1 end
      most = math.min(most, MOST - #gone, math.max(1, #gone), 16)
      local popped = most > 0 and redis.call('RPOP', KEYS[k], most)
      if not popped then break end
      for _, payload in ipairs(popped) do gone[#gone + 1], taken = payload, taken + #payload end
    end
  end
  return gone, taken
end
