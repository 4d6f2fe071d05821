-- exchange: settle what has ended and fetch what there is credit for, in one step, so that
-- a worker's unfinished messages never exceed its credit at any moment.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 started hash
--        then one ledger per settled group (the first key for none)
--        then the bells of quiet queues, which are only looked at
--        then per asked queue: ledger (the first key for none), bell, delayed set, delayed messages,
--        ready lists in the order to pop
-- ARGV:  1 number of settled groups
--        2 number of asked queues
--        3 tag prefix; the tags are prefix .. queue number .. ":" .. 1, 2, 3 ...
--        4 lease in milliseconds
--        5 most bytes to fetch
--        6 slots to fetch work for
--        7 number of quiet queues
--        then per settled group: ending, number of tags, the tags
--        then per asked queue: name as JSON text, credit, messages that take one of the slots, or 0
--        for those that take none, most bytes, number of ready lists
-- What is left of the bytes, and of 1,500 messages a call, is shared evenly by the queues that are still
-- to come, so no queue keeps another from being fetched; of each there may be one more than fits. When
-- a quiet queue has something after all, nothing is fetched that takes a slot: its turn may be first. Nor
-- is anything after a queue that has more than it may send now: it has the next turn, too.
-- Reply: {server time in ms, {numbers of the quiet queues that are not},
--         then per asked queue {messages left behind,
--                               time in ms at which its next delayed message is due, 0 for none,
--                               message, message ...}}

-- include: kinds
-- include: records
-- include: time
-- include: bell
-- include: trailing
-- include: delayed
-- include: limits
-- include: promote
-- include: settle

local queues, prefix, lease = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local budget, slots = tonumber(ARGV[5]), tonumber(ARGV[6])
local key, arg = settle()
local expiry, bytes = whole(now + lease), 0

local rung, quiet = {}, tonumber(ARGV[7])
if quiet > 0 and redis.call('EXISTS', unpack(KEYS, key, key + quiet - 1)) > 0 then
  for k = 1, quiet do
    if redis.call('EXISTS', KEYS[key + k - 1]) == 1 then rung[#rung + 1] = k end
  end
  if #rung > 0 then slots = 0 end
end
key = key + quiet

-- What is fetched is read first, of all queues; then it is recorded, and then it leaves its lists: a
-- server that refuses one of these loses nothing.
local fetches, tags, takes, refusal = {}, {}, {}, nil
local records, scores, expiries, origins = {}, {}, {}, {}

-- Reads the oldest messages of a list: one first, to learn the size; then as many as the mean size
-- lets into the room, in steps that stay short: the next ones may be a thousand times as big.
local function read(q, list, name, fetch)
  local got, taken, empty = fetch.got, 0, false
  while fetch.credit > 0 and bytes < budget and (#got == 2 or fetch.bytes < fetch.room) and not empty do
    local want = 1
    if fetch.bytes > 0 then
      local fitting = math.floor((fetch.room - fetch.bytes) * (#got - 2) / fetch.bytes)
      want = math.max(1, math.min(fetch.credit, fitting, #got - 2, 16))
    end
    local messages = redis.call('LRANGE', list, -taken - want, -taken - 1)
    empty = #messages < want
    for i = #messages, 1, -1 do
      if bytes >= budget or (#got > 2 and fetch.bytes >= fetch.room) then break end
      local message, r = messages[i], 2 * #tags
      local tag = prefix .. q .. ':' .. #got - 1
      got[#got + 1], tags[#tags + 1] = message, tag
      records[r + 1], records[r + 2] = tag, record_of(message, name)
      scores[r + 1], scores[r + 2] = now_seconds, tag
      expiries[r + 1], expiries[r + 2] = expiry, tag
      origins[r + 1], origins[r + 2] = tag, list
      bytes, fetch.bytes, fetch.credit = bytes + #message, fetch.bytes + #message, fetch.credit - 1
      taken = taken + 1
    end
  end
  if taken > 0 then takes[#takes + 1] = {list, taken} end
end

local function length(fetch)
  local sum = 0
  for l = 1, fetch.lists do sum = sum + redis.call('LLEN', KEYS[fetch.key + 3 + l]) end
  return sum
end

for q = 1, queues do
  local lists, ledger, delayed = tonumber(ARGV[arg + 4]), KEYS[key], KEYS[key + 2]
  local due = first_due(delayed)
  if due and due <= now and promotions > 0 and promotion_bytes > 0 then
    local refused = promote(delayed, KEYS[key + 3], ledger)
    refusal = refusal or refused
    -- What is refused keeps no other queue waiting, and is tried again in a second.
    due = refused and now + 1000 or first_due(delayed)
  end
  local fetch = {key = key, lists = lists, ledger = ledger, bytes = 0, got = {0, due or 0}}
  fetch.room = math.min(tonumber(ARGV[arg + 3]), math.floor((budget - bytes) / (queues - q + 1)))
  local per_slot, share = tonumber(ARGV[arg + 2]), math.floor((1500 - #tags) / (queues - q + 1))
  fetch.credit = math.min(tonumber(ARGV[arg + 1]), math.max(1, share))
  if per_slot > 0 then fetch.credit = math.min(fetch.credit, slots * per_slot) end
  for l = 1, lists do read(q, KEYS[key + 3 + l], ARGV[arg], fetch) end
  if per_slot > 0 then
    slots = slots - math.ceil((#fetch.got - 2) / per_slot)
  elseif slots > 0 and fetch.credit == 0 and length(fetch) > #fetch.got - 2 then
    slots = 0
  end
  fetches[q], key, arg = fetch, key + 4 + lists, arg + 5
end

-- A refused promotion is told when nothing was found besides: what is fetched must be answered with.
if refusal and #tags == 0 then return refusal end
refusal = record_all(tags, takes, {{'HSET', UNACKED, records}, {'ZADD', INDEX, scores},
  {'ZADD', LEASES, expiries}, {'HSET', ORIGINS, origins}})
if refusal then return refusal end

local reply = {now, rung}
for q, fetch in ipairs(fetches) do
  local got, ledger, bell = fetch.got, fetch.ledger, KEYS[fetch.key + 1]
  local left = length(fetch)
  got[1], reply[q + 2] = left, got
  -- A bell is rung on only when this caller could not take all; an empty queue has no bell.
  if left == 0 then redis.call('DEL', bell) else ring(bell) end
  if ledger ~= KEYS[1] and #got > 2 then
    redis.call('HINCRBY', ledger, 'unacked', #got - 2)
    -- An empty queue has no bytes, whatever stock participants put in or took out uncounted.
    if left == 0 then
      redis.call('HDEL', ledger, 'bytes')
    else
      redis.call('HINCRBY', ledger, 'bytes', -fetch.bytes)
    end
  end
end
return reply
