-- claim: keep the room of a full queue for a group that waits for it, or let it go; it ends by itself.
--
-- KEYS:  1 claim of the queue
-- ARGV:  1 who waits
--        2 number of messages, 0 when it waits no longer: for as long nobody else may claim, so that
--          others have their turn
--        3 bytes of these messages       4 milliseconds for which it is kept
-- Reply: 1, or 0 when somebody else waits already

-- include: kinds

local key, who = KEYS[1], ARGV[1]
local wrong = misused('hash', key)
if wrong then return wrong end
local has = redis.call('HGET', key, 'who')
if has and has ~= who then return 0 end
local is_over = ARGV[2] == '0'
if is_over and not has then return 1 end

-- What is kept for nobody is a pause.
redis.call('HSET', key, 'who', is_over and '-' or who, 'messages', ARGV[2], 'bytes', is_over and '0' or ARGV[3])
redis.call('PEXPIRE', key, ARGV[4])
return 1
