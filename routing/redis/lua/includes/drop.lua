-- What an overflow policy drops, and keeps for a while. `ledger` is the queue's.

local function append(list, payloads)
  for i = 1, #payloads, 3500 do
    redis.call('LPUSH', list, unpack(payloads, i, math.min(i + 3499, #payloads)))
  end
end

-- Cuts a list to its newest, by more than has come in; what fell out is counted.
local function trim(ledger, list, most, counter)
  local over = math.min(redis.call('LLEN', list) - most, 2 * MOST + 3500)
  if over > 0 then
    redis.call('LTRIM', list, 0, -over - 1)
    redis.call('HINCRBY', ledger, counter, over)
  end
end

-- Keeps what was dropped for the workers, which give each a final state: at most 64 MB of messages
-- of this size.
local function keep_dropped(ledger, list, payloads, policy)
  for i, payload in ipairs(payloads) do
    payloads[i] = with_entry(payload, '"dropped":"' .. policy .. '"')
  end
  append(list, payloads)
  local most = math.floor(67108864 / #payloads[#payloads])
  trim(ledger, list, math.max(100, math.min(10000, most)), 'results_lost')
end

-- Keeps messages as dead letters.
local function keep_dead(ledger, list, payloads, evidence, most)
  for i, payload in ipairs(payloads) do
    payloads[i] = with_entry(payload, '"dead":{"at":' .. whole(now) .. ',' .. evidence)
  end
  append(list, payloads)
  trim(ledger, list, most, 'dead_trimmed')
end
