-- exchange: settle what has ended and fetch what there is credit for, in one step, so that
-- a worker's unfinished messages never exceed its credit at any moment.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 started hash
--        then one ledger per settled group (the first key for none)
--        then per asked queue: ledger (the first key for none), bell, delayed set, delayed messages,
--        ready lists in the order to pop
--        then the bells of quiet queues, which are only looked at
-- ARGV:  1 number of settled groups
--        2 number of asked queues
--        3 tag prefix; the tags are prefix .. queue number .. ":" .. 1, 2, 3 ...
--        4 lease in milliseconds
--        5 most bytes to fetch
--        6 slots to fetch work for
--        7 limits of tasks and keys: name, concurrency and milliseconds a start, each a line; "" for none
--        then per settled group: ending, number of tags, the tags
--        then per asked queue: name as JSON text, credit, messages that take one of the slots, or 0
--        for those that take none, most bytes, number of ready lists, "0" when nothing limits it, or its
--        own "concurrency:milliseconds a start:messages of one call", with 0 for none
-- What is left of the bytes is shared evenly by the queues that are still to come, so no queue keeps
-- another from being fetched; of each there may be one message more than fits.
-- Reply: {server time in ms, {numbers of the quiet queues that are not},
--         then per asked queue {messages left behind that may start,
--                               time in ms at which its next delayed message is due, or the next
--                               blocked one may start, 0 for none,
--                               message, message ...}}

-- include: time
-- include: bell
-- include: gate
-- include: records
-- include: trailing
-- include: delayed
-- include: promote
-- include: settle

local queues, prefix, lease, budget = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local slots = tonumber(ARGV[6])
local key, arg = settle()
local expiry, bytes = whole(now + lease), 0

-- What is fetched is read first, of all queues; then it is recorded, and then it leaves its lists: a
-- server that refuses one of these loses nothing.
local fetches, tags, takes, held, refusal = {}, {}, {}, {}, nil
local records, scores, expiries, origins = {}, {}, {}, {}

-- include: starts
-- include: read

for q = 1, queues do
  local lists, ledger, delayed = tonumber(ARGV[arg + 4]), KEYS[key], KEYS[key + 2]
  local due = first_due(delayed)
  if due and due <= now and promotions > 0 then
    local refused = promote(delayed, KEYS[key + 3], ledger)
    refusal = refusal or refused
    -- What is refused keeps no other queue waiting, and is tried again in a second.
    due = refused and now + 1000 or first_due(delayed)
  end
  local fetch = {key = key, lists = lists, ledger = ledger, bytes = 0, got = {0, due or 0}}
  fetch.queue, fetch.prefix = string.sub(KEYS[key + 1], #OURS + 6), prefix .. q .. '.'
  fetch.room = math.min(tonumber(ARGV[arg + 3]), math.floor((budget - bytes) / (queues - q + 1)))
  local credit, per_slot = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
  fetch.credit = per_slot > 0 and math.min(credit, slots * per_slot) or credit
  fetch.most = fetch.credit
  open_gate(fetch, ARGV[arg + 5])
  local parked = fetch.blocked and redis.call('ZRANGEBYSCORE', fetch.blocked, '-inf', now, 'LIMIT', 0, 100) or {}
  for n = 1, #parked + 1 do
    local gate, before = parked[n] and gate_for(string.sub(parked[n], 6)), fetch.credit
    for l = 1, lists do read(q, KEYS[key + 3 + l], ARGV[arg], fetch, gate) end
    if gate then look_again(gate, fetch, before) end
  end
  if per_slot > 0 then slots = slots - math.ceil((#fetch.got - 2) / per_slot) end
  fetches[q], key, arg = fetch, key + 4 + lists, arg + 6
end

-- A refused promotion is told when nothing was found besides: what is fetched must be answered with.
if refusal and #tags == 0 then return refusal end
refusal = record_all(tags, takes, {{'HSET', UNACKED, records}, {'ZADD', INDEX, scores},
  {'ZADD', LEASES, expiries}, {'HSET', ORIGINS, origins}})
if refusal then return refusal end

local rung, reply = {}, {now, {}}
note_starts(held)
for q, fetch in ipairs(fetches) do
  local got, ledger, bell, left = fetch.got, fetch.ledger, KEYS[fetch.key + 1], 0
  for l = 1, fetch.lists do left = left + redis.call('LLEN', KEYS[fetch.key + 3 + l]) end
  got[1], reply[q + 2] = left, got
  if fetch.touched then
    got[1], got[2] = rest(fetch, left, bell)
  -- A bell is rung on only when this caller could not take all; an empty queue has no bell.
  elseif left == 0 then
    redis.call('DEL', bell)
  else
    ring(bell)
  end
  if ledger ~= KEYS[1] and #got > 2 then
    redis.call('HINCRBY', ledger, 'unacked', #got - 2)
    -- An empty queue has no bytes, whatever stock participants put in or took out uncounted.
    if left == 0 and not (fetch.blocked and redis.call('EXISTS', fetch.blocked) == 1) then
      redis.call('HDEL', ledger, 'bytes')
    else
      redis.call('HINCRBY', ledger, 'bytes', -fetch.bytes)
    end
  end
end
if key <= #KEYS and redis.call('EXISTS', unpack(KEYS, key)) > 0 then
  for k = key, #KEYS do
    if redis.call('EXISTS', KEYS[k]) == 1 then rung[#rung + 1] = k - key + 1 end
  end
end
reply[2] = rung
return reply
