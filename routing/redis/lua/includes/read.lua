-- Reads the oldest messages of a list: one first, to learn the size; then as many as the mean size
-- lets into the room, in steps that stay short: the next ones may be a thousand times as big. Of what is
-- parked for a gate it reads as many as may start.
local function read(q, l, fetch, gate)
  local ready = KEYS[fetch.key + 3 + l]
  local list = gate and parked_list(ready, gate) or ready
  local length = gate and (ask('list', list) or 0) or fetch.lengths[l]
  local got, taken, take, stuck = fetch.got, 0, {list, 0, 0, parks = {}}, false
  local function has_room()
    return bytes < budget and (#got == 2 or fetch.bytes < fetch.room) and parking > 0 and parking_bytes > 0
  end
  while taken < length and fetch.credit > 0 and has_room() and not stuck do
    local want = 1
    if fetch.bytes > 0 then
      local fitting = math.floor((fetch.room - fetch.bytes) * (#got - 2) / fetch.bytes)
      want = math.max(1, math.min(fetch.credit, fitting, #got - 2, 16))
    end
    if gate then want = math.min(want, room_of(gate, fetch)) end
    if want < 1 then break end
    local messages = redis.call('LRANGE', list, -taken - want, -taken - 1)
    for i = #messages, 1, -1 do
      if not has_room() then break end
      local message, r = messages[i], 2 * #tags
      local own = gate or fetch.blocked and gate_for(gate_in(message))
      if own and not gate and is_blocked(own, fetch) then
        stuck = not park(take, message, own, fetch)
        if stuck then break end
      else
        local tag = prefix .. q .. ':' .. #got - 1
        got[#got + 1], tags[#tags + 1] = message, tag
        records[r + 1], records[r + 2] = tag, record_of(message, fetch.name)
        scores[r + 1], scores[r + 2] = now_seconds, tag
        expiries[r + 1], expiries[r + 2] = expiry, tag
        origins[r + 1], origins[r + 2] = tag, ready
        bytes, fetch.bytes, fetch.credit = bytes + #message, fetch.bytes + #message, fetch.credit - 1
        take[3] = take[3] + 1
        local slots = (fetch.gate and pass(fetch.gate, fetch) or '') .. (own and pass(own, fetch) or '')
        if slots ~= '' then held[#held + 1], held[#held + 2] = tag, fetch.queue .. '\n' .. slots end
      end
      taken = taken + 1
    end
  end
  take[2] = taken
  if taken > 0 then takes[#takes + 1] = take end
  if gate then fetch.parked = fetch.parked - taken else fetch.left = fetch.left - taken end
end

-- The gates with parked messages of a queue that are to be looked at now, this one's share of them.
local function gates_due(fetch, queues_left)
  if not fetch.has_blocked then return {} end
  local most = math.max(1, math.floor(looks / queues_left))
  local names = redis.call('ZRANGEBYSCORE', fetch.blocked, '-inf', now, 'LIMIT', 0, whole(most))
  looks = looks - #names
  return names
end

-- Fetches from an asked queue: what was parked and may start now goes first. A gate that had no turn
-- keeps its place.
local function fetch_from(q, fetch, queues_left)
  for _, name in ipairs(gates_due(fetch, queues_left)) do
    local gate, before = gate_for(string.sub(name, 6)), fetch.credit
    for l = 1, fetch.lists do read(q, l, fetch, gate) end
    gate.parked[fetch.queue] = true
    if fetch.credit < before or room_of(gate, fetch) < 1 then fetch.touched[gate] = true end
  end
  for l = 1, fetch.lists do read(q, l, fetch) end
end
