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
--        8 limits of tasks and keys: name, concurrency and milliseconds a start, each a line; "" for none
--        then per settled group: ending, number of tags, the tags
--        then per asked queue: name as JSON text, credit, messages that take one of the slots, or 0
--        for those that take none, most bytes, number of ready lists, "0" when nothing limits it, or its
--        own "concurrency:milliseconds a start:messages of one call", with 0 for none
-- What is left of the bytes, and of 1,500 messages a call, is shared evenly by the queues that are still
-- to come, so no queue keeps another from being fetched; of each there may be one more than fits. When
-- a quiet queue has something after all, nothing is fetched that takes a slot: its turn may be first. Nor
-- is anything after a queue that has more than it may send now: it has the next turn, too.
-- Reply: {server time in ms, {numbers of the quiet queues that are not},
--         then per asked queue {messages left behind that may start,
--                               time in ms at which its next delayed message is due, or the next
--                               blocked one may start, 0 for none,
--                               message, message ...}}

-- include: kinds
-- include: time
-- include: bell
-- include: gate
-- include: records
-- include: trailing
-- include: delayed
-- include: limits
-- include: promote
-- include: asked
-- include: settle

local queues, prefix, lease = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local budget, slots = tonumber(ARGV[5]), tonumber(ARGV[6])
local rung = rung_from(settle())
if #rung > 0 then slots = 0 end
local expiry, bytes = whole(now + lease), 0

-- What is fetched is read first, of all queues; then it is recorded, and then it leaves its lists: a
-- server that refuses one of these loses nothing.
local tags, takes, held, refusal = {}, {}, {}, nil
local records, scores, expiries, origins = {}, {}, {}, {}

-- include: starts
-- include: read
-- include: left

for q, fetch in ipairs(asked) do
  if fetch then
    local due = fetch.has_delayed and first_due(KEYS[fetch.key + 2])
    if due and due <= now and promotions > 0 and promotion_bytes > 0 then
      local refused = promote(KEYS[fetch.key + 2], KEYS[fetch.key + 3], fetch.ledger)
      refusal = refusal or refused
      -- What is refused keeps no other queue waiting, and is tried again in a second.
      due = refused and now + 1000 or first_due(KEYS[fetch.key + 2])
      measure(fetch)
    end
    fetch.got[2] = due or 0
    local queues_left, per_slot = queues - q + 1, fetch.per_slot
    fetch.room = math.min(fetch.most_bytes, math.floor((budget - bytes) / queues_left))
    fetch.most = per_slot > 0 and math.min(fetch.asked, slots * per_slot) or fetch.asked
    fetch.credit = math.min(fetch.most, math.max(1, math.floor((1500 - #tags) / queues_left)))
    open_gate(fetch)
    fetch_from(q, fetch, queues_left)
    if per_slot > 0 then
      slots = slots - math.ceil((#fetch.got - 2) / per_slot)
    elseif slots > 0 and fetch.credit == 0 and fetch.left > 0 and is_open(fetch) then
      slots = 0
    end
  end
end

-- A refused promotion is told when nothing was found besides: what is fetched must be answered with.
if refusal and #tags == 0 then return refusal end
refusal = record_all(tags, takes, {{'HSET', UNACKED, records}, {'ZADD', INDEX, scores},
  {'ZADD', LEASES, expiries}, {'HSET', ORIGINS, origins}})
if refusal then return refusal end

note_starts(held)
local reply = {now, rung}
for q, fetch in ipairs(asked) do
  if fetch then leave(fetch) end
  reply[q + 2] = fetch and fetch.got or {0, 0}
end
return reply
