-- Takes the delayed messages that are due first, as many as a call may; one first, to learn the size.
-- The payloads are returned, and how many messages that were: some may have lost theirs.
local function take_delayed(most)
  local taken, n, size = {}, 0, 0
  most = math.min(most, MOST)
  while n < most and size < MOST_BYTES do
    local members = redis.call('ZRANGE', DELAYED, 0, math.min(most - n, math.max(1, n), 16) - 1)
    if #members == 0 then break end
    redis.call('ZREM', DELAYED, unpack(members))
    for _, value in ipairs(redis.call('HMGET', PAYLOADS, unpack(members))) do
      if value then
        local _, payload = split(value)
        taken[#taken + 1], size = payload, size + #payload
      end
    end
    redis.call('HDEL', PAYLOADS, unpack(members))
    n = n + #members
  end
  return taken, n
end
