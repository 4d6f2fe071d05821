-- exchange: settle what has ended and fetch what there is credit for, in one step, so that
-- a worker's unfinished messages never exceed its credit at any moment.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 deliveries hash            6 started hash
--        then one ledger per settled group (the first key for none)
--        then per asked queue: ledger (the first key for none), bell, delayed set, delayed messages,
--        ready lists in the order to pop
-- ARGV:  1 number of settled groups
--        2 number of asked queues
--        3 tag prefix; the tags are prefix .. queue number .. ":" .. 1, 2, 3 ...
--        4 lease in milliseconds
--        5 most bytes to fetch
--        6 most queues to fetch from
--        7 number of message ids whose delivery count is over, then these ids
--        then per settled group: ending, number of tags, the tags
--        then per asked queue: name as JSON text, credit, most bytes, number of ready lists
-- What is left of the bytes is shared evenly by the queues that are still to come, so no queue keeps
-- another from being fetched; of each there may be one message more than fits.
-- Reply: {server time in ms, number of counted deliveries,
--         time in ms at which the next delayed message of the asked queues is due, 0 for none,
--         then per asked queue {messages left behind, message, message ...}}

local UNACKED, INDEX, LEASES, ORIGINS, DELIVERIES, STARTED = unpack(KEYS, 1, 6)
local groups, queues, prefix = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local lease, budget = tonumber(ARGV[4]), tonumber(ARGV[5])
local most_queues, key, arg = tonumber(ARGV[6]), 7, 8

-- Calls a command with all values from ARGV[from] to ARGV[to], in pieces that Lua's stack holds.
local function on_args(command, name, from, to)
  local answer = 0
  for i = from, to, 3500 do
    answer = answer + redis.call(command, name, unpack(ARGV, i, math.min(i + 3499, to)))
  end
  return answer
end

-- Removing comes first: a server at its memory limit still lets a script run whose first write removes.
local ids = tonumber(ARGV[7])
if ids > 0 then
  on_args('HDEL', DELIVERIES, arg, arg + ids - 1)
elseif groups == 0 then
  redis.call('HDEL', DELIVERIES, '')
end
arg = arg + ids
for _ = 1, groups do
  local ending, count = ARGV[arg], tonumber(ARGV[arg + 1])
  local from, to = arg + 2, arg + 1 + count
  local removed = on_args('HDEL', UNACKED, from, to)
  on_args('ZREM', INDEX, from, to)
  on_args('ZREM', LEASES, from, to)
  on_args('HDEL', ORIGINS, from, to)
  on_args('HDEL', STARTED, from, to)
  if KEYS[key] ~= KEYS[1] and removed > 0 then
    redis.call('HINCRBY', KEYS[key], ending, removed)
    redis.call('HINCRBY', KEYS[key], 'unacked', -removed)
  end
  key, arg = key + 1, to + 1
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local reply = {now, redis.call('HLEN', DELIVERIES), 0}
local bytes = 0
local seconds = time[1] .. '.' .. string.format('%06d', tonumber(time[2]))
local expiry = string.format('%.0f', now + lease)

-- Delayed messages that one call makes ready: a moment at which very many are due must not hold the
-- server, and the caller comes again at once.
local promotions, next_due = 500, nil

-- Appends what is due to the ready lists, first due first; returns what the server refuses, which
-- stays delayed. What has no text (it was evicted, or never came) is no message. Age counts from the
-- due time, and the mark tells the worker that no clock of its own is to be asked again. What was
-- given back waited in line before: it goes to the front, with its own age and marks.
local function promote(delayed, texts, ledger)
  local members, dues = {}, {}
  local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'WITHSCORES', 'LIMIT', 0, promotions)
  for i = 1, #due, 2 do
    members[#members + 1], dues[#dues + 1] = due[i], string.format('%.0f', due[i + 1])
  end
  local pushes = {}
  local function add(member, due_ms, value)
    -- The value is "<length of the list's name>:<name><text>".
    local digits = string.match(value, '^%d+')
    local from = #digits + 2 + tonumber(digits)
    local list, text = string.sub(value, #digits + 2, from - 1), string.sub(value, from)
    if string.sub(text, -1) ~= '}' then text = string.match(text, '^(.*})%s*$') or text end
    local is_back = string.find(string.sub(text, -300), ',"celeriac":{[^{}]*"returned":%d+[^{}]*}}$')
    if string.sub(text, -1) == '}' and not is_back then
      local stamp = ',"celeriac":{"at":' .. due_ms .. ',"due":' .. due_ms .. '}}'
      text = string.sub(text, 1, -2) .. stamp
    end
    local command = is_back and 'RPUSH' or 'LPUSH'
    local push = pushes[command .. list]
      or {command = command, list = list, texts = {}, members = {}, scores = {}, bytes = 0}
    pushes[command .. list] = push
    -- Each push to the front passes the one before it.
    table.insert(push.texts, is_back and 1 or #push.texts + 1, text)
    table.insert(push.members, member)
    table.insert(push.scores, due_ms)
    table.insert(push.scores, member)
    push.bytes = push.bytes + #text
  end
  for i, value in ipairs(redis.call('HMGET', texts, unpack(members))) do
    if value then add(members[i], dues[i], value) else redis.call('ZREM', delayed, members[i]) end
  end
  for _, push in pairs(pushes) do
    redis.call('ZREM', delayed, unpack(push.members))
    local answer = redis.pcall(push.command, push.list, unpack(push.texts))
    if type(answer) == 'table' then
      redis.pcall('ZADD', delayed, unpack(push.scores))
      return answer
    end
    redis.call('HDEL', texts, unpack(push.members))
    if ledger ~= KEYS[1] then redis.call('HINCRBY', ledger, 'bytes', push.bytes) end
    promotions = promotions - #push.members
  end
end

local function first_due(delayed)
  return tonumber(redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2])
end

-- What is fetched is read first, of all queues; then it is recorded, and then it leaves its lists: a
-- server that refuses one of these loses nothing.
local fetches, tags, takes, refusal = {}, {}, {}, nil
local records, scores, expiries, origins = {}, {}, {}, {}

for q = 1, queues do
  local name, credit, lists = ARGV[arg], tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 3])
  local room = math.min(tonumber(ARGV[arg + 2]), math.floor((budget - bytes) / (queues - q + 1)))
  local ledger, delayed = KEYS[key], KEYS[key + 2]
  local due = first_due(delayed)
  if due and due <= now and promotions > 0 then
    local refused = promote(delayed, KEYS[key + 3], ledger)
    refusal = refusal or refused
    -- What is refused keeps no other queue waiting, and is tried again in a second.
    due = refused and now + 1000 or first_due(delayed)
  end
  if due and (not next_due or due < next_due) then next_due = due end
  local got, before = {0}, bytes
  if most_queues == 0 then credit = 0 end
  for l = 1, lists do
    local list, taken, empty = KEYS[key + 3 + l], 0, false
    while credit > 0 and bytes < budget and (#got == 1 or bytes - before < room) and not empty do
      -- One first, to learn the size; then as many as the mean size lets into the room, in steps
      -- that stay short: the next ones may be a thousand times as big.
      local want, size = 1, bytes - before
      if size > 0 then
        local fitting = math.floor((room - size) * (#got - 1) / size)
        want = math.max(1, math.min(credit, fitting, #got - 1, 16))
      end
      -- The oldest is the last.
      local messages = redis.call('LRANGE', list, -taken - want, -taken - 1)
      empty = #messages < want
      for i = #messages, 1, -1 do
        local message, n, r = messages[i], #got, 2 * #tags
        local tag = prefix .. q .. ':' .. n
        got[n + 1], tags[#tags + 1] = message, tag
        records[r + 1], records[r + 2] = tag, '[' .. message .. ',"",' .. name .. ']'
        scores[r + 1], scores[r + 2] = seconds, tag
        expiries[r + 1], expiries[r + 2] = expiry, tag
        origins[r + 1], origins[r + 2] = tag, list
        bytes, credit = bytes + #message, credit - 1
      end
      taken = taken + #messages
    end
    if taken > 0 then takes[#takes + 1] = {list, taken} end
  end
  if #got > 1 then most_queues = most_queues - 1 end
  fetches[q] = {got = got, bytes = bytes - before, key = key, lists = lists, ledger = ledger}
  key, arg = key + 4 + lists, arg + 4
end

-- A refused promotion is told when nothing was found besides: what is fetched must be answered with.
if refusal and #tags == 0 then return refusal end

-- Calls a command, and returns what the server says instead of an answer.
local function refusal_of(command, ...)
  local answer = redis.pcall(command, ...)
  return type(answer) == 'table' and answer.err and answer or nil
end

refusal = nil
local gone = 0
for i = 1, #records, 3500 do
  local to = math.min(i + 3499, #records)
  refusal = refusal or refusal_of('HSET', UNACKED, unpack(records, i, to))
    or refusal_of('ZADD', INDEX, unpack(scores, i, to))
    or refusal_of('ZADD', LEASES, unpack(expiries, i, to))
    or refusal_of('HSET', ORIGINS, unpack(origins, i, to))
end
for _, take in ipairs(takes) do
  refusal = refusal or refusal_of('LTRIM', take[1], 0, -take[2] - 1)
  if not refusal then gone = gone + take[2] end
end
if refusal then
  -- What has stayed in its list is nobody's.
  for i = gone + 1, #tags do
    redis.pcall('HDEL', UNACKED, tags[i])
    redis.pcall('ZREM', INDEX, tags[i])
    redis.pcall('ZREM', LEASES, tags[i])
    redis.pcall('HDEL', ORIGINS, tags[i])
  end
  return refusal
end

for q, fetch in ipairs(fetches) do
  local got, ledger, bell, left = fetch.got, fetch.ledger, KEYS[fetch.key + 1], 0
  for l = 1, fetch.lists do left = left + redis.call('LLEN', KEYS[fetch.key + 3 + l]) end
  got[1] = left
  -- A bell is rung on only when this caller could not take all; an empty queue has no bell.
  if left == 0 then
    redis.call('DEL', bell)
  elseif redis.call('EXISTS', bell) == 0 then
    redis.call('LPUSH', bell, '1')
    redis.call('PEXPIRE', bell, 3600000)
  end
  if ledger ~= KEYS[1] and #got > 1 then
    redis.call('HINCRBY', ledger, 'unacked', #got - 1)
    -- An empty queue has no bytes, whatever stock participants put in or took out uncounted.
    if left == 0 then
      redis.call('HDEL', ledger, 'bytes')
    else
      redis.call('HINCRBY', ledger, 'bytes', -fetch.bytes)
    end
  end
  reply[q + 3] = got
end

reply[3] = next_due or 0
return reply
