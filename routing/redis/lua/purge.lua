-- purge: drop every waiting and every delayed message of one queue, and count them.
--
-- KEYS:  1 bell of the queue       2 ledger hash of the queue, or the first key for none
--        3 delayed set               4 delayed messages
--        5... the ready lists of the queue
-- ARGV:  none
-- Reply: number of messages dropped

local dropped = redis.call('ZCARD', KEYS[3])
redis.call('DEL', KEYS[3], KEYS[4])
for k = 5, #KEYS do
  dropped = dropped + redis.call('LLEN', KEYS[k])
  redis.call('DEL', KEYS[k])
end
redis.call('DEL', KEYS[1])
if KEYS[2] ~= KEYS[1] and dropped > 0 then
  redis.call('HDEL', KEYS[2], 'bytes')
  redis.call('HINCRBY', KEYS[2], 'purged', dropped)
end
return dropped
