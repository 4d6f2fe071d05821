-- What an exchange is asked for, and its keys: looked at before anything is changed.

-- Looks at an asked queue. Returns false when there is nothing of it, and which of its keys cannot be used.
local function look_at(q, key, arg)
  local lists, gate = tonumber(ARGV[arg + 4]), ARGV[arg + 5]
  local queue, to = string.sub(KEYS[key + 1], #OURS + 6), key + 3 + lists
  local blocked = OURS .. 'blocked:' .. queue
  local there = redis.call('EXISTS', blocked, KEYS[key + 1], KEYS[key + 2], unpack(KEYS, key + 4, to))
  if there == 0 then return false end
  local wrong_list, lengths = misused('list', KEYS[key + 1], unpack(KEYS, key + 4, to))
  local wrong_set, delayed = misused('zset', KEYS[key + 2])
  local wrong = wrong_list or wrong_set or misused('hash', KEYS[key], KEYS[key + 3])
  if gate ~= '0' then
    wrong = wrong or misused('hash', OURS .. 'gate:queue:' .. queue)
      or misused('string', OURS .. 'rate:queue:' .. queue, OURS .. 'promised:' .. queue)
  end
  if wrong then return false, wrong end
  for _, length in ipairs(lengths) do there = there - math.min(1, length) end
  table.remove(lengths, 1)
  local fetch = {key = key, queue = queue, ledger = KEYS[key], lists = lists, lengths = lengths, left = 0}
  for _, length in ipairs(lengths) do fetch.left = fetch.left + length end
  fetch.has_delayed = delayed[1] > 0
  -- Of these keys, the blocked set is the only one that was not asked.
  fetch.has_blocked = there > math.min(1, delayed[1])
  if fetch.has_blocked then wrong = misused('zset', blocked) end
  fetch.name, fetch.asked, fetch.per_slot = ARGV[arg], tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
  fetch.most_bytes, fetch.limits, fetch.prefix = tonumber(ARGV[arg + 3]), gate, ARGV[3] .. q .. '.'
  fetch.bytes, fetch.got = 0, {0, 0}
  return fetch, wrong
end

-- Counts what waits in a queue's lists again.
local function measure(fetch)
  fetch.left = 0
  for l = 1, fetch.lists do
    fetch.lengths[l] = redis.call('LLEN', KEYS[fetch.key + 3 + l])
    fetch.left = fetch.left + fetch.lengths[l]
  end
end

-- Looks at all; returns the first key that cannot be used as an error, nil for none.
local asked = {}
local function look_at_all()
  local key, arg, wrong, misused_one = 6, 9, nil, nil
  for _ = 1, tonumber(ARGV[1]) do
    wrong = wrong or misused('hash', KEYS[key])
    key, arg = key + 1, arg + 2 + tonumber(ARGV[arg + 1])
  end
  key = key + tonumber(ARGV[7])
  for q = 1, tonumber(ARGV[2]) do
    asked[q], misused_one = look_at(q, key, arg)
    wrong = wrong or misused_one
    key, arg = key + 4 + tonumber(ARGV[arg + 4]), arg + 6
  end
  return wrong
end

local misused_key = look_at_all()
if misused_key then return misused_key end

-- The numbers of the quiet queues that are not, whose bells begin at this key.
local function rung_from(key)
  local rung, quiet = {}, tonumber(ARGV[7])
  if quiet > 0 and redis.call('EXISTS', unpack(KEYS, key, key + quiet - 1)) > 0 then
    for k = 1, quiet do
      if redis.call('EXISTS', KEYS[key + k - 1]) == 1 then rung[#rung + 1] = k end
    end
  end
  return rung
end
