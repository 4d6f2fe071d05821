-- rebase: book what a queue's ledger cannot explain, so that it balances from now on.
--
-- KEYS:  1 ledger hash of the queue
-- ARGV:  1 what to add to "unaccounted"
--        2 what to add to "unacked"
--        3 the value of "unaccounted" that was read with the difference, 0 for none
--        4 what to add to "blocked"
-- Reply: 1, or 0 when somebody has booked since then

-- include: kinds

local wrong = misused('hash', KEYS[1])
if wrong then return wrong end
if tonumber(redis.call('HGET', KEYS[1], 'unaccounted') or 0) ~= tonumber(ARGV[3]) then return 0 end
redis.call('HINCRBY', KEYS[1], 'unaccounted', ARGV[1])
redis.call('HINCRBY', KEYS[1], 'unacked', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'blocked', ARGV[4])
return 1
