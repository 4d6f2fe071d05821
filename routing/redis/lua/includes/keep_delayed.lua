-- Keeps the new messages from `low` to `high`, of which the last one has this number; returns when the
-- first of them is due. Rounded up: a message is never early.
local function keep_delayed(low, high, number)
  local from_now = tonumber(TIME[1]) * 1000 + math.ceil(tonumber(TIME[2]) / 1000)
  local earliest, scores, payloads = math.huge, {}, {}
  for i = low, high do
    local at = first + (i - 1) * 3
    local due, member = from_now + tonumber(ARGV[at]), member_of(number - high + i, ARGV[at + 1])
    scores[#scores + 1], scores[#scores + 2] = whole(due), member
    payloads[#payloads + 1], payloads[#payloads + 2] = member, value_of(LIST, ARGV[at + 2])
    earliest = math.min(earliest, due)
  end
  for i = 1, #scores, 3500 do
    local to = math.min(i + 3499, #scores)
    redis.call('ZADD', DELAYED, unpack(scores, i, to))
    redis.call('HSET', PAYLOADS, unpack(payloads, i, to))
  end
  return earliest
end
