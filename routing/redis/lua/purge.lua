-- purge: drop every waiting, every blocked and every delayed message of one queue, and count them.
--
-- KEYS:  1 bell of the queue       2 ledger hash of the queue, or the first key for none
--        3 delayed set               4 delayed messages
--        5 blocked set of the queue
--        6... the ready lists of the queue
-- ARGV:  1 how lists of parked messages are named, before the length of the ready list's name
-- Reply: number of messages dropped

-- include: parked

local dropped = redis.call('ZCARD', KEYS[3])
redis.call('DEL', KEYS[3], KEYS[4])
local blocked = 0
for k = 6, #KEYS do
  dropped = dropped + redis.call('LLEN', KEYS[k])
  redis.call('DEL', KEYS[k])
  blocked = blocked + each_parked(KEYS[5], ARGV[1], KEYS[k], function(list) redis.call('DEL', list) end)
end
redis.call('DEL', KEYS[1], KEYS[5])
if KEYS[2] ~= KEYS[1] and dropped + blocked > 0 then
  redis.call('HDEL', KEYS[2], 'bytes', 'blocked')
  redis.call('HINCRBY', KEYS[2], 'purged', dropped + blocked)
end
return dropped + blocked
