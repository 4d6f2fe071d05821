-- give_back: return held messages to the front of their queue, in the order they were fetched; at
-- once, or after a delay that doubles each time.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 deliveries hash            6 started hash
--        7 bell of the queue       8 ledger hash of the queue, or the first key for none
--        9 delayed set of the queue         10 delayed messages of the queue
--        11 delayed count, which keeps equal messages apart
-- ARGV:  tag, message id, mark and evidence in turn, in fetch order; the mark is "" for a message
--        that nobody may have begun, "redelivered" for one that may have run in part, "charged"
--        when that counts as a delivery too; the evidence says why it was charged; "later" for one
--        that cannot be run now, which waits among the delayed ones, and notes how often it did
-- Reply: number of messages that went back (tags that are gone are passed over)

local UNACKED, INDEX, LEASES, ORIGINS, DELIVERIES, STARTED = unpack(KEYS, 1, 6)
local returned, bytes = 0, 0

-- Adds the mark to the trailing object of a text; producers of stock Celery write none.
local function redelivered(text)
  local tail = string.match(string.sub(text, -300), ',"celeriac":({[^{}]*})}$')
  if not tail then return string.sub(text, 1, -2) .. ',"celeriac":{"redelivered":true}}' end
  if string.find(tail, '"redelivered":true', 1, true) then return text end
  return string.sub(text, 1, -3) .. ',"redelivered":true}}'
end

-- Notes in the trailing object that a text was given back once more; returns also how often before.
local function counted(text)
  local tail = string.match(string.sub(text, -300), ',"celeriac":{[^{}]*}}$')
  local before = tail and string.match(tail, '"returned":(%d+)')
  if not tail then return text, 0 end
  if not before then return string.sub(text, 1, -3) .. ',"returned":1}}', 0 end
  local entry = '"returned":' .. string.format('%.0f', before + 1)
  return string.sub(text, 1, -#tail - 1) .. string.gsub(tail, '"returned":%d+', entry), tonumber(before)
end

local later = {}
-- Each push to the front passes the one before it, so the newest goes first.
for i = #ARGV - 3, 1, -4 do
  local tag, id, mark = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local record = redis.call('HGET', UNACKED, tag)
  local origin = redis.call('HGET', ORIGINS, tag)
  local message = record and origin and string.match(record, '^%[(.*),"",".-"%]$')
  if message then
    redis.call('HDEL', UNACKED, tag)
    redis.call('ZREM', INDEX, tag)
    redis.call('ZREM', LEASES, tag)
    redis.call('HDEL', ORIGINS, tag)
    redis.call('HDEL', STARTED, tag)
    if mark ~= '' and string.sub(message, -1) == '}' then message = redelivered(message) end
    if mark == 'later' then
      later[#later + 1] = {origin, id, counted(message)}
    else
      redis.call('RPUSH', origin, message)
      bytes = bytes + #message
    end
    if mark == 'charged' and id ~= '' then
      local count = string.match(redis.call('HGET', DELIVERIES, id) or '0', '^%d+')
      redis.call('HSET', DELIVERIES, id, (count + 1) .. ' ' .. ARGV[i + 3])
      -- A week without a charge: what is noted belongs to messages that were purged or dropped.
      redis.call('PEXPIRE', DELIVERIES, 604800000)
    end
    returned = returned + 1
  end
end

-- These wait until they are tried again: 1 s the first time, a minute at most.
local is_news = returned > #later
if #later > 0 then
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local first_due = tonumber(redis.call('ZRANGE', KEYS[9], 0, 0, 'WITHSCORES')[2] or math.huge)
  local sequence = redis.call('INCRBY', KEYS[11], #later)
  for i, one in ipairs(later) do
    local list, id, message, before = unpack(one)
    local due = now + 1000 * math.min(60, 2 ^ math.min(before, 6))
    local member = string.format('%016.0f#', sequence - i + 1) .. id
    redis.call('ZADD', KEYS[9], string.format('%.0f', due), member)
    redis.call('HSET', KEYS[10], member, #list .. ':' .. list .. message)
    -- A worker that waits knows when the next message is due; it must hear of an earlier one.
    is_news = is_news or due < first_due
  end
end

if returned > 0 then
  if KEYS[8] ~= KEYS[1] then
    redis.call('HINCRBY', KEYS[8], 'unacked', -returned)
    redis.call('HINCRBY', KEYS[8], 'given_back', returned)
    redis.call('HINCRBY', KEYS[8], 'bytes', bytes)
  end
  if is_news and redis.call('EXISTS', KEYS[7]) == 0 then
    redis.call('LPUSH', KEYS[7], '1')
    redis.call('PEXPIRE', KEYS[7], 3600000)
  end
end
return returned
