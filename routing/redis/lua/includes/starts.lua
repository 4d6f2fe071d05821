-- What of the asked queues may start now. A gate is closed when its slots are taken, or when the next
-- start is not due; a message of a task or a key whose gate is closed is parked: it leaves its ready
-- list for a list of its gate, and lets those behind it pass. Of each queue a sorted set has the gates
-- with parked messages, by the time in ms at which to look at them again.

-- A start that comes late by up to so much is made up for, so that a rate is kept over seconds.
local SLACK_MS = 100
-- A gate without a free slot is looked at so often, though whoever frees one tells of it.
local LOOK_MS = 5000
-- A worker that is woken when the next start is due has so long to come before another one is.
local LATE_MS = 250
-- Messages of one call that may be parked, and their bytes.
local parking, parking_bytes = 500, budget

-- The limits of tasks and keys: name -> concurrency and milliseconds from one start to the next, 0 for none.
local limits = {}
for name, concurrency, interval in string.gmatch(ARGV[7], '([^\n]*)\n([^\n]*)\n([^\n]*)\n') do
  limits[name] = {tonumber(concurrency), tonumber(interval)}
end

-- The state of a gate, read once a call.
local gates = {}
local function gate_of(name, concurrency, interval)
  if gates[name] then return gates[name] end
  local gate = {name = name, slots = math.huge, starts = math.huge, interval = interval, room = 0, counts = {}, parked = {}}
  if concurrency > 0 then
    gate.limited = true
    gate.slots = concurrency - redis.call('HLEN', OURS .. 'gate:' .. name)
  end
  if interval > 0 then
    gate.at = math.max(tonumber(redis.call('GET', OURS .. 'rate:' .. name) or 0), now - SLACK_MS)
    gate.starts = math.floor((now - gate.at) / interval + 1)
  end
  gates[name] = gate
  return gate
end

-- The gate of a task or a key, nil for none; one that no limit is about any more is open.
local function gate_for(mark)
  local limit = mark and (limits[string.match(mark, '^[^|]*')] or {0, 0})
  return limit and gate_of('task:' .. mark, limit[1], limit[2])
end

-- How many messages may start; a slot, and a start, is one call of up to fetch.unit of them.
local function room_of(gate, fetch)
  local own = gate.fetch == fetch and gate.room or 0
  return own + math.max(0, math.min(gate.slots, gate.starts)) * fetch.unit
end

-- Lets a message start; returns what its tag holds of the gate.
local function pass(gate, fetch)
  if gate.fetch ~= fetch then gate.fetch, gate.room = fetch, 0 end
  if gate.room == 0 then
    gate.room, gate.taken, gate.starts = fetch.unit, (gate.taken or 0) + 1, gate.starts - 1
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
    gate.parked[fetch.queue] = redis.call('ZSCORE', fetch.blocked, gate.name) and true or false
  end
  return gate.parked[fetch.queue] or room_of(gate, fetch) < 1
end

-- Notes that a message of a take is to be parked.
local function park(take, message, gate, fetch)
  local key = parked_list(take[1], gate)
  gate.parked[fetch.queue], fetch.touched[gate] = true, true
  take.parks[key] = take.parks[key] or {}
  table.insert(take.parks[key], message)
  fetch.parked = fetch.parked + 1
  parking, parking_bytes = parking - 1, parking_bytes - #message
end

-- Counts what was fetched before its queue had a concurrency.
local function enlist(gate, fetch)
  if tonumber(redis.call('HGET', fetch.ledger, 'unacked') or 0) < 1 then return end
  local ours, all = {}, redis.call('HGETALL', ORIGINS)
  for l = 1, fetch.lists do ours[KEYS[fetch.key + 3 + l]] = true end
  for i = 1, #all, 2 do
    local tag = all[i]
    if ours[all[i + 1]] and redis.call('ZSCORE', LEASES, tag) then
      local noted = redis.call('HGET', GATED, tag) or fetch.queue .. '\n'
      redis.call('HSET', GATED, tag, noted .. tag .. '\n' .. gate.name .. '\n')
      redis.call('HINCRBY', OURS .. 'gate:' .. gate.name, tag, 1)
      gate.slots, is_gated = gate.slots - 1, true
    end
  end
end

-- Opens the gate of an asked queue.
local function open_gate(fetch, text)
  local concurrency, interval, unit = string.match(text, '^(%d+):([%d.]+):(%d+)$')
  fetch.unit = tonumber(unit or 1)
  if not concurrency then return end
  fetch.parked, fetch.touched = 0, {}
  if ARGV[7] ~= '' then fetch.blocked = OURS .. 'blocked:' .. fetch.queue end
  if tonumber(concurrency) + tonumber(interval) > 0 then
    fetch.gate = gate_of('queue:' .. fetch.queue, tonumber(concurrency), tonumber(interval))
    if fetch.gate.slots == tonumber(concurrency) then enlist(fetch.gate, fetch) end
    fetch.credit = math.min(fetch.credit, room_of(fetch.gate, fetch))
  end
end

-- Notes that a gate with parked messages was looked at: one that had no turn keeps its place.
local function look_again(gate, fetch, credit)
  gate.parked[fetch.queue] = true
  if fetch.credit < credit or room_of(gate, fetch) < 1 then fetch.touched[gate] = true end
end

-- Writes what has passed the gates, when it is recorded.
local function note_starts(held)
  for i = 1, #held, 3500 do redis.call('HSET', GATED, unpack(held, i, math.min(i + 3499, #held))) end
  is_gated = is_gated or #held > 0 or nil
  for name, gate in pairs(gates) do
    for slot, count in pairs(gate.counts) do redis.call('HINCRBY', OURS .. 'gate:' .. name, slot, count) end
    if gate.at and gate.taken then
      local lasts = whole(math.max(1, math.ceil(gate.at + SLACK_MS - now)))
      redis.call('SET', OURS .. 'rate:' .. name, string.format('%.3f', gate.at), 'PX', lasts)
    end
  end
end

-- Notes which gates have parked messages of a queue, and when to look at them again.
local function note_parked(fetch)
  for gate in pairs(fetch.touched) do
    local left = 0
    for l = 1, fetch.lists do left = left + redis.call('LLEN', parked_list(KEYS[fetch.key + 3 + l], gate)) end
    if left == 0 then
      redis.call('ZREM', fetch.blocked, gate.name)
      redis.call('SREM', OURS .. 'waiting:' .. gate.name, fetch.queue)
    else
      redis.call('ZADD', fetch.blocked, whole(opens_at(gate)), gate.name)
      redis.call('SADD', OURS .. 'waiting:' .. gate.name, fetch.queue)
    end
  end
  if fetch.parked ~= 0 then redis.call('HINCRBY', fetch.ledger, 'blocked', fetch.parked) end
end

-- Tells one worker that has place for it when what is blocked may start; when nobody has been told,
-- another one is woken, to be told.
local function promise(fetch, opens, bell)
  local key, me = OURS .. 'promised:' .. fetch.queue, string.match(prefix, '^[^:]*')
  local whom = redis.call('GET', key)
  if whom and whom ~= me then return end
  if #fetch.got - 2 < fetch.most then
    redis.call('SET', key, me, 'PX', whole(opens - now + LATE_MS))
    return opens
  end
  redis.call('DEL', key, bell .. SHUT)
  ring(bell)
  return nil, true
end

-- Of so many messages that are left, returns how many may start, and when to look again. A bell is rung
-- on only when something may start that this caller could not take; what is blocked rings nobody.
local function rest(fetch, left, bell)
  note_parked(fetch)
  local due, opens = fetch.got[2], nil
  if fetch.blocked then
    local first = tonumber(redis.call('ZRANGE', fetch.blocked, 0, 0, 'WITHSCORES')[2])
    if first and first <= now then left = left + 1 else opens = first end
  end
  local is_shut = left > 0 and fetch.gate and room_of(fetch.gate, fetch) < 1
  if is_shut then left, opens = 0, opens_at(fetch.gate) end
  if left > 0 then ring(bell) return left, due end
  redis.call('DEL', bell)
  if not opens then return 0, due end
  local told, handed_on
  if opens < now + LOOK_MS - 1000 then told, handed_on = promise(fetch, opens, bell) end
  if is_shut and not handed_on then
    redis.call('SET', bell .. SHUT, '1', 'PX', whole(math.min(2000, opens - now + LATE_MS)))
  end
  if told and (due == 0 or told < due) then due = told end
  return 0, due
end
