-- renew: extend the leases of what a worker holds, and note what it has started.
--
-- KEYS:  1 unacked hash            2 unacked index (kombu's)    3 leases
--        4 origins hash            5 started hash
--        6 workers hash
-- ARGV:  1 lease in milliseconds
--        2 host name of the worker
--        3 "1" when the worker stops: what has started is not noted, but forgotten; else "0"
--        then tag and, when it has started, with how many in one call (else "") in turn
-- Reply: {the tags that are gone}

-- include: kinds
-- include: time
-- include: bell
-- include: gate
-- include: records

local WORKERS = KEYS[6]
local wrong = misused('hash', WORKERS)
if wrong then return wrong end
local expiry = whole(now + tonumber(ARGV[1]))

local is_leaving = ARGV[3] == '1'
local fetchers, tags, company = {}, {}, {}
for i = 4, #ARGV - 1, 2 do
  tags[#tags + 1], company[#company + 1] = ARGV[i], is_leaving and '' or ARGV[i + 1]
  fetchers[string.match(ARGV[i], '^[^:]*')] = true
end
if #tags == 0 then return {} end

-- Removing comes first: a server at its memory limit must not let leases run out.
if is_leaving then redis.call('HDEL', STARTED, unpack(tags)) end
for fetcher in pairs(fetchers) do
  redis.call('HDEL', WORKERS, fetcher)
  redis.call('HSET', WORKERS, fetcher, ARGV[2])
end
local gone, leases, scores, started, waiting = {}, {}, {}, {}, {}
for i, lease in ipairs(redis.call('ZMSCORE', LEASES, unpack(tags))) do
  if lease then
    leases[#leases + 1], leases[#leases + 2] = expiry, tags[i]
    scores[#scores + 1], scores[#scores + 2] = now_seconds, tags[i]
    if company[i] ~= '' then
      started[#started + 1], started[#started + 2] = tags[i], company[i]
    else
      waiting[#waiting + 1] = tags[i]
    end
  else
    gone[#gone + 1] = tags[i]
  end
end
if #leases > 0 then
  redis.call('ZADD', LEASES, 'XX', unpack(leases))
  redis.call('ZADD', INDEX, 'XX', unpack(scores))
end
if #started > 0 then redis.call('HSET', STARTED, unpack(started)) end
-- What ran and waits again has not started: its neighbours may end the worker meanwhile.
if #waiting > 0 then redis.call('HDEL', STARTED, unpack(waiting)) end
return gone
