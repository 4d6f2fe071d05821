-- announce: say that a worker consumes queues, for a while, and learn the version of the settings.
--
-- KEYS:  1 settings version
--        then per queue: consumers set, ledger hash (the first key for none), pace hash
-- ARGV:  1 the worker: name of its bell, number of its slots and host name, with colons between
--        2 milliseconds after which it is forgotten, 0 to forget it now
-- Reply: the version of the settings

-- include: kinds

local wrong = misused('string', KEYS[1])
for key = 2, #KEYS, 3 do
  wrong = wrong or misused('zset', KEYS[key]) or misused('hash', KEYS[key + 2])
    or (KEYS[key + 1] ~= KEYS[1] and misused('hash', KEYS[key + 1]))
end
if wrong then return wrong end

-- include: time
-- include: pace

local worker, lasts = ARGV[1], tonumber(ARGV[2])
for key = 2, #KEYS, 3 do
  redis.call('ZREM', KEYS[key], worker)
  if lasts > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[key], '-inf', now)
    redis.call('ZADD', KEYS[key], whole(now + lasts), worker)
    if KEYS[key + 1] ~= KEYS[1] then pace_of(KEYS[key + 1], KEYS[key + 2]) end
  end
end
return tonumber(redis.call('GET', KEYS[1]) or 0)
