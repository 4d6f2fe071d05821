-- Reads the oldest messages of a list: one first, to learn the size; then as many as the mean size
-- lets into the room, in steps that stay short: the next ones may be a thousand times as big. Of what is
-- parked for a gate it reads as many as may start.
local function read(q, ready, name, fetch, gate)
  local list = gate and parked_list(ready, gate) or ready
  local got, taken, empty, take = fetch.got, 0, false, {list, 0, 0, parks = {}}
  while fetch.credit > 0 and bytes < budget and (#got == 2 or fetch.bytes < fetch.room) and not empty
    and parking > 0 and parking_bytes > 0 do
    local want = 1
    if fetch.bytes > 0 then
      local fitting = math.floor((fetch.room - fetch.bytes) * (#got - 2) / fetch.bytes)
      want = math.max(1, math.min(fetch.credit, fitting, #got - 2, 16))
    end
    if gate then want = math.min(want, room_of(gate, fetch)) end
    local messages = want > 0 and redis.call('LRANGE', list, -taken - want, -taken - 1) or {}
    empty = want == 0 or #messages < want
    for i = #messages, 1, -1 do
      local message, r = messages[i], 2 * #tags
      local own = gate or fetch.blocked and gate_for(gate_in(message))
      if own and not gate and is_blocked(own, fetch) then
        park(take, message, own, fetch)
      else
        local tag = prefix .. q .. ':' .. #got - 1
        got[#got + 1], tags[#tags + 1] = message, tag
        records[r + 1], records[r + 2] = tag, record_of(message, name)
        scores[r + 1], scores[r + 2] = now_seconds, tag
        expiries[r + 1], expiries[r + 2] = expiry, tag
        origins[r + 1], origins[r + 2] = tag, ready
        bytes, fetch.bytes, fetch.credit = bytes + #message, fetch.bytes + #message, fetch.credit - 1
        take[3] = take[3] + 1
        local slots = (fetch.gate and pass(fetch.gate, fetch) or '') .. (own and pass(own, fetch) or '')
        if slots ~= '' then held[#held + 1], held[#held + 2] = tag, fetch.queue .. '\n' .. slots end
      end
    end
    taken = taken + #messages
  end
  take[2] = taken
  if taken > 0 then takes[#takes + 1] = take end
  if gate then fetch.parked = fetch.parked - taken end
end
