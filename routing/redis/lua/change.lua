-- change: store the settings of one queue, unless somebody else did since they were read.
--
-- KEYS:  1 settings hash           2 settings version           3 settings log
--        4 draining flag of the queue
--        5 consumers set of the queue
-- ARGV:  1 name of the queue
--        2 the settings that were read, as JSON text, "" for none
--        3 those that take their place, "" for none
--        4 "1" when the queue takes no new work from now on, else ""
--        5 what the names of workers' own bells begin with
--        6 most entries that the log keeps
--        7... entries of the log
-- Reply: the new version, 0 when nothing was changed, as somebody else was first

-- include: kinds

local SETTINGS, VERSION, LOG, DRAINING, CONSUMERS = unpack(KEYS)
local wrong = misused('hash', SETTINGS) or misused('string', VERSION) or misused('list', LOG)
  or misused('zset', CONSUMERS)
if wrong then return wrong end
if (redis.call('HGET', SETTINGS, ARGV[1]) or '') ~= ARGV[2] then return 0 end

-- Removing comes first: a server at its memory limit must be told to pause or to drain.
redis.call('HDEL', SETTINGS, ARGV[1])
if ARGV[3] ~= '' then redis.call('HSET', SETTINGS, ARGV[1], ARGV[3]) end
redis.call('DEL', DRAINING)
if ARGV[4] ~= '' then redis.call('SET', DRAINING, '1') end
local version = redis.call('INCR', VERSION)
for i = 7, #ARGV do redis.call('LPUSH', LOG, ARGV[i]) end
redis.call('LTRIM', LOG, 0, tonumber(ARGV[6]) - 1)

-- Every worker that consumes the queue hears of it now; those beyond the bound a moment later.
for _, consumer in ipairs(redis.call('ZRANGE', CONSUMERS, 0, 999)) do
  local bell = ARGV[5] .. string.match(consumer, '^[^:]*')
  redis.call('LPUSH', bell, '1')
  redis.call('PEXPIRE', bell, 60000)
end
return version
