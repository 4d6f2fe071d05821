-- What an exchange leaves behind, and notes of the gates, when what is fetched is recorded.

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
    for l = 1, fetch.lists do
      left = left + (tonumber(redis.pcall('LLEN', parked_list(KEYS[fetch.key + 3 + l], gate))) or 1)
    end
    if left == 0 then
      redis.call('ZREM', fetch.blocked, gate.name)
      redis.pcall('SREM', OURS .. 'waiting:' .. gate.name, fetch.queue)
    else
      redis.call('ZADD', fetch.blocked, whole(opens_at(gate)), gate.name)
      redis.pcall('SADD', OURS .. 'waiting:' .. gate.name, fetch.queue)
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
  local is_shut = left > 0 and not is_open(fetch)
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

-- Leaves an asked queue: says what is left, rings its bell on, and counts what is fetched.
local function leave(fetch)
  local got, ledger, bell = fetch.got, fetch.ledger, KEYS[fetch.key + 1]
  got[1] = fetch.left
  if fetch.touched then
    got[1], got[2] = rest(fetch, fetch.left, bell)
  -- A bell is rung on only when this caller could not take all; an empty queue has no bell.
  elseif fetch.left == 0 then
    redis.call('DEL', bell)
  else
    ring(bell)
  end
  if ledger ~= KEYS[1] and #got > 2 then
    redis.call('HINCRBY', ledger, 'unacked', #got - 2)
    -- An empty queue has no bytes, whatever stock participants put in or took out uncounted.
    if fetch.left == 0 and not (fetch.blocked and redis.call('EXISTS', fetch.blocked) == 1) then
      redis.call('HDEL', ledger, 'bytes')
    else
      redis.call('HINCRBY', ledger, 'bytes', -fetch.bytes)
    end
  end
end
