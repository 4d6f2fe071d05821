-- bury: move held messages to the dead letters of their queue, each with the evidence; trim these.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 started hash
--        6 dead letters of the queue
--        7 ledger hash of the queue, or the first key for none
-- ARGV:  1 most dead letters       2 their highest age in milliseconds
--        3... in turn: tag, evidence as JSON without its opening brace, payload to keep in the
--        place of the held one or ""
-- Reply: {messages buried, dead letters trimmed}; tags that are gone are passed over

-- include: time
-- include: bell
-- include: gate
-- include: records
-- include: trailing

local dead, ledger = KEYS[6], KEYS[7]
local most, age = tonumber(ARGV[1]), tonumber(ARGV[2])

local buried = 0
for i = 3, #ARGV, 3 do
  local tag, rest, payload = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local record = redis.call('HGET', UNACKED, tag)
  if record then
    release(tag)
    local held = message_in(record) or record
    if payload == '' then payload = held end
    if not string.match(payload, '}%s*$') then payload = '{"lost":true}' end
    local evidence = string.format('{"at":%.0f,"deliveries":%d,', now, 1 + count_in(held, 'deliveries')) .. rest
    redis.call('LPUSH', dead, with_entry(payload, '"dead":' .. evidence))
    buried = buried + 1
  end
end

local trimmed = math.max(0, redis.call('LLEN', dead) - most)
if trimmed > 0 and most == 0 then redis.call('DEL', dead) end
if trimmed > 0 and most > 0 then redis.call('LTRIM', dead, 0, most - 1) end
-- The oldest is the last one. A bounded number a call: the next one goes on.
for _ = 1, 1000 do
  local oldest = redis.call('LINDEX', dead, -1)
  local at = oldest and tonumber(string.match(oldest, '^.*"dead":{"at":(%d+)') or nil)
  if not at or at > now - age then break end
  redis.call('RPOP', dead)
  trimmed = trimmed + 1
end

if ledger ~= KEYS[1] then
  if buried > 0 then
    redis.call('HINCRBY', ledger, 'unacked', -buried)
    redis.call('HINCRBY', ledger, 'dead', buried)
  end
  if trimmed > 0 then redis.call('HINCRBY', ledger, 'dead_trimmed', trimmed) end
end
return {buried, trimmed}
