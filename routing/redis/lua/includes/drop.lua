-- What an overflow policy drops, and keeps for a while. `ledger` is the queue's.

local function append(list, texts)
  for i = 1, #texts, 3500 do
    redis.call('LPUSH', list, unpack(texts, i, math.min(i + 3499, #texts)))
  end
end

-- Cuts a list to its newest; what fell out is counted.
local function trim(ledger, list, most, counter)
  local over = redis.call('LLEN', list) - most
  if over > 0 then
    redis.call('LTRIM', list, 0, most - 1)
    redis.call('HINCRBY', ledger, counter, over)
  end
end

-- Keeps what was dropped for the workers, which give each a final state: at most 64 MB of messages
-- of this size.
local function keep_dropped(ledger, list, texts, policy)
  for i, text in ipairs(texts) do
    texts[i] = with_entry(text, '"dropped":"' .. policy .. '"')
  end
  append(list, texts)
  local most = math.floor(67108864 / #texts[#texts])
  trim(ledger, list, math.max(100, math.min(10000, most)), 'results_lost')
end

-- Keeps messages as dead letters.
local function keep_dead(ledger, list, texts, evidence, most)
  for i, text in ipairs(texts) do
    texts[i] = with_entry(text, '"dead":{"at":' .. whole(now) .. ',' .. evidence)
  end
  append(list, texts)
  trim(ledger, list, most, 'dead_trimmed')
end
