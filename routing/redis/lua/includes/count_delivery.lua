-- Counts a delivery that killed a process, and notes why.
local function count_delivery(id, why)
  local count = string.match(redis.call('HGET', DELIVERIES, id) or '0', '^%d+')
  redis.call('HSET', DELIVERIES, id, (count + 1) .. ' ' .. why)
  -- A week without a charge: what is noted belongs to messages that were purged or dropped.
  redis.call('PEXPIRE', DELIVERIES, 604800000)
end
