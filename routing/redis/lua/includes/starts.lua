-- What of the asked queues may start now. A gate is closed when its slots are taken, or when the next
-- start is not due; a message of a task or a key whose gate is closed is parked: it leaves its ready
-- list for a list of its gate, and lets those behind it pass. Of each queue a sorted set has the gates
-- with parked messages, by the time in ms at which to look at them again.

-- A start that comes late by up to so much is made up for, so that a rate is kept over seconds.
local SLACK_MS = 100
-- A gate without a free slot is looked at so often, though whoever frees one tells of it.
local LOOK_MS = 5000
-- A worker that is woken when the next start is due has so long to come before another one is: as
-- long as its start is made up for.
local LATE_MS = SLACK_MS
-- Messages of one call that may be parked, and their bytes.
local parking, parking_bytes = MOST / 2, MOST_BYTES
-- Gates with parked messages that one call looks at, of all queues together.
local looks = 100

-- The limits of tasks and keys: name -> concurrency and milliseconds from one start to the next, 0 for
-- none, and messages of one call.
local limits, no_limit = {}, {0, 0, 1}
for name, numbers in string.gmatch(ARGV[8], '([^\n]*)\n([^\n]*\n[^\n]*\n[^\n]*)\n') do
  local concurrency, interval, unit = string.match(numbers, '(.*)\n(.*)\n(.*)')
  limits[name] = {tonumber(concurrency), tonumber(interval), tonumber(unit)}
end

-- What a key is asked for by its type. One of another type is told when nothing else is found: what it
-- blocks keeps no other queue waiting.
local function ask(kind, key)
  local wrong, answers = misused(kind, key)
  refusal = refusal or wrong
  return answers and answers[1]
end

-- The state of a gate, read once a call. It is closed when its keys cannot be used.
local gates = {}
local function gate_of(name, concurrency, interval, unit)
  if gates[name] then return gates[name] end
  local gate = {name = name, slots = math.huge, starts = math.huge, interval = interval, unit = unit, room = 0, counts = {}, parked = {}}
  if concurrency > 0 then
    gate.limited = true
    gate.slots = concurrency - (ask('hash', OURS .. 'gate:' .. name) or concurrency)
  end
  if interval > 0 then
    local at = ask('string', OURS .. 'rate:' .. name)
    gate.at = at == nil and now + 1000 or math.max(tonumber(at or 0) or 0, now - SLACK_MS)
    gate.starts = math.floor((now - gate.at) / interval + 1)
  end
  gates[name] = gate
  return gate
end

-- The gate of a task or a key, nil for none; one that no limit is about any more is open.
local function gate_for(mark)
  return mark and gate_of('task:' .. mark, unpack(limits[string.match(mark, '^[^|]*')] or no_limit))
end

-- How many messages may start; a slot, and a start, is one call of up to gate.unit of them.
local function room_of(gate, fetch)
  local own = gate.fetch == fetch and gate.room or 0
  return own + math.max(0, math.min(gate.slots, gate.starts)) * gate.unit
end

-- Whether a queue's own gate lets more start.
local function is_open(fetch)
  return not fetch.gate or room_of(fetch.gate, fetch) > 0
end

-- Lets a message start; returns what its tag holds of the gate.
local function pass(gate, fetch)
  if gate.fetch ~= fetch then gate.fetch, gate.room = fetch, 0 end
  if gate.room == 0 then
    gate.room, gate.taken, gate.starts = gate.unit, (gate.taken or 0) + 1, gate.starts - 1
    gate.slots, gate.slot = gate.slots - 1, fetch.prefix .. gate.taken
    if gate.at then gate.at = gate.at + gate.interval end
  end
  gate.room = gate.room - 1
  if not gate.limited then return '' end
  gate.counts[gate.slot] = (gate.counts[gate.slot] or 0) + 1
  return gate.slot .. '\n' .. gate.name .. '\n'
end

-- When to look at a closed gate again.
local function opens_at(gate)
  if gate.slots < 1 then return now + LOOK_MS end
  return math.ceil(math.max(now, gate.starts < 1 and gate.at or now))
end

-- The list of what is parked of a ready list for a gate.
local function parked_list(list, gate)
  return OURS .. 'parked:' .. #list .. ':' .. list .. gate.name
end

-- Whether a message is blocked: by its gate, or by those of its gate that came before it.
local function is_blocked(gate, fetch)
  if gate.parked[fetch.queue] == nil then
    local is_there = fetch.has_blocked and redis.call('ZSCORE', fetch.blocked, gate.name)
    gate.parked[fetch.queue] = is_there and true or false
  end
  return gate.parked[fetch.queue] or room_of(gate, fetch) < 1
end

-- Notes that a message of a take is to be parked; false when it cannot be, and stays where it is.
local function park(take, message, gate, fetch)
  local key = parked_list(take[1], gate)
  if not take.parks[key] and not ask('list', key) then return false end
  gate.parked[fetch.queue], fetch.touched[gate] = true, true
  take.parks[key] = take.parks[key] or {}
  table.insert(take.parks[key], message)
  fetch.parked = fetch.parked + 1
  parking, parking_bytes = parking - 1, parking_bytes - #message
  return true
end

-- Counts what was fetched while its queue had no concurrency.
local function enlist(gate, fetch)
  local uncounted = tonumber(redis.call('HGET', fetch.ledger, 'unacked') or 0)
  for _, count in ipairs(redis.call('HVALS', OURS .. 'gate:' .. gate.name)) do
    uncounted = uncounted - (tonumber(count) or 0)
  end
  if uncounted < 1 then return end
  local ours, all = {}, redis.call('HGETALL', ORIGINS)
  for l = 1, fetch.lists do ours[KEYS[fetch.key + 3 + l]] = true end
  for i = 1, #all, 2 do
    local tag = all[i]
    local noted = ours[all[i + 1]] and (redis.call('HGET', GATED, tag) or fetch.queue .. '\n')
    if noted and not string.find(noted, '\n' .. gate.name .. '\n', 1, true) and redis.call('ZSCORE', LEASES, tag) then
      redis.call('HSET', GATED, tag, noted .. tag .. '\n' .. gate.name .. '\n')
      redis.call('HINCRBY', OURS .. 'gate:' .. gate.name, tag, 1)
      gate.slots, is_gated = gate.slots - 1, true
    end
  end
end

-- Opens the gate of an asked queue. What was parked may start also when no limit holds any more.
local function open_gate(fetch)
  local concurrency, interval, unit = string.match(fetch.limits, '^(%d+):([%d.]+):(%d+)$')
  if not concurrency and not fetch.has_blocked then return end
  fetch.parked, fetch.touched = 0, {}
  if ARGV[8] ~= '' or fetch.has_blocked then fetch.blocked = OURS .. 'blocked:' .. fetch.queue end
  concurrency, interval = tonumber(concurrency or 0), tonumber(interval or 0)
  if concurrency + interval > 0 then
    fetch.gate = gate_of('queue:' .. fetch.queue, concurrency, interval, tonumber(unit))
    if concurrency > 0 then enlist(fetch.gate, fetch) end
    fetch.credit = math.min(fetch.credit, room_of(fetch.gate, fetch))
  end
end
