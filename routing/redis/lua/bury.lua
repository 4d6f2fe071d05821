-- bury: move held messages to the dead letters of their queue, each with the evidence; trim these.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 started hash
--        6 dead letters of the queue
--        7 ledger hash of the queue, or the first key for none
-- ARGV:  1 most dead letters       2 their highest age in milliseconds
--        3... in turn: tag, evidence as JSON without its opening brace, payload to keep in the
--        place of the held one or ""
-- Reply: {messages buried, dead letters trimmed, how many of the last were not looked at, 1 when there
--         is more to trim}; tags that are gone are passed over

-- include: kinds
-- include: time
-- include: bell
-- include: gate
-- include: records
-- include: trailing
-- include: limits

local dead, ledger = KEYS[6], KEYS[7]
local most, age = tonumber(ARGV[1]), tonumber(ARGV[2])
local wrong = misused('list', dead) or misused('hash', ledger)
if wrong then return wrong end

local letters, tags, seen, size, i = {}, {}, {}, 0, 3
while i <= #ARGV and size < MOST_BYTES do
  local tag, rest, payload = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local record = not seen[tag] and redis.call('HGET', UNACKED, tag)
  if record then
    local held = message_in(record) or record
    if payload == '' then payload = held end
    local is_object = string.sub(payload, -1) == '}' or string.match(payload, '}%s*$')
    if not is_object then payload = '{"lost":true}' end
    local evidence = string.format('{"at":%.0f,"deliveries":%d,', now, 1 + count_in(held, 'deliveries')) .. rest
    letters[#letters + 1], tags[#tags + 1] = with_entry(payload, '"dead":' .. evidence), tag
    seen[tag], size = true, size + #record + #evidence
  end
  i = i + 3
end
local buried = #letters
if buried > 0 then
  release(unpack(tags))
  redis.call('LPUSH', dead, unpack(letters))
end

-- Cuts off so many of the oldest, which are the last ones.
local trimmed = 0
local function trim(count)
  count = math.min(count, MOST)
  if count > 0 then redis.call('LTRIM', dead, 0, -count - 1) end
  trimmed = trimmed + math.max(0, count)
end

-- When a letter died. The time stands near the end; texts in the evidence have their quotes escaped.
local function died(letter)
  local tail, mark, at = string.sub(letter, -100000), '"dead":{"at":', nil
  local from, to = string.find(tail, mark, 1, true)
  while from do
    at = tonumber(string.match(tail, '^%d+', to + 1))
    from, to = string.find(tail, mark, to, true)
  end
  return at
end

trim(redis.call('LLEN', dead) - most)
-- What does not say when it died is as old as the next newer one that does. In a row of them that one
-- is looked for in steps that grow, between the last one without a time and the first one too young.
local at, without, young, is_more = 0, -1, redis.call('LLEN', dead), trimmed == MOST
while not is_more and at > without and at < young do
  local letter = redis.call('LINDEX', dead, -1 - at)
  local time = died(letter)
  if time and time <= now - age then
    trim(at + 1)
    at, without, young = 0, -1, redis.call('LLEN', dead)
    size = size + #letter
    is_more = trimmed >= MOST or size >= MOST_BYTES
  else
    if time then young = at else without = at end
    at = without < 16 and without + 1 or math.min(2 * without, math.floor((without + young) / 2))
  end
end

if ledger ~= KEYS[1] then
  if buried > 0 then
    redis.call('HINCRBY', ledger, 'unacked', -buried)
    redis.call('HINCRBY', ledger, 'dead', buried)
  end
  if trimmed > 0 then redis.call('HINCRBY', ledger, 'dead_trimmed', trimmed) end
end
return {buried, trimmed, math.max(0, (#ARGV - i + 1) / 3), is_more and 1 or 0}
