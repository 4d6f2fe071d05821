-- The writing half of an exchange.

-- Calls a function with all values from ARGV[from] to ARGV[to], in pieces that Lua's stack holds.
local function on_args(call, from, to)
  local answer = 0
  for i = from, to, 3500 do
    answer = answer + call(unpack(ARGV, i, math.min(i + 3499, to)))
  end
  return answer
end

-- Takes out what has ended, by group; returns where keys go on. Removing comes first: a
-- server at its memory limit still lets a script run whose first write removes.
local function settle()
  local key, arg, groups = 6, 9, tonumber(ARGV[1])
  if groups == 0 then redis.call('HDEL', UNACKED, '') end
  for _ = 1, groups do
    local ending, from, to = ARGV[arg], arg + 2, arg + 1 + tonumber(ARGV[arg + 1])
    local removed = on_args(release, from, to)
    if KEYS[key] ~= KEYS[1] and removed > 0 then
      redis.call('HINCRBY', KEYS[key], ending, removed)
      redis.call('HINCRBY', KEYS[key], 'unacked', -removed)
    end
    key, arg = key + 1, to + 1
  end
  return key
end

-- Calls a command, and returns what the server says instead of an answer.
local function refusal_of(...)
  local answer = redis.pcall(...)
  return type(answer) == 'table' and answer.err and answer or nil
end

-- Parks messages of a take; returns what the server refuses, and then none of them is parked.
local function park_all(parks)
  local refusal, done = nil, {}
  for key, messages in pairs(parks) do
    refusal = refusal or refusal_of('LPUSH', key, unpack(messages))
    done[key] = not refusal and #messages or nil
  end
  for key, count in pairs(refusal and done or {}) do redis.call('LTRIM', key, count, -1) end
  return refusal
end

-- Writes the records of tags, then takes their messages off their lists, of which some are parked;
-- returns what the server refuses, and then what has stayed in its list is nobody's.
local function record_all(tags, takes, writes)
  local refusal, gone = nil, 0
  for i = 1, 2 * #tags, 3500 do
    local to = math.min(i + 3499, 2 * #tags)
    for _, write in ipairs(writes) do
      refusal = refusal or refusal_of(write[1], write[2], unpack(write[3], i, to))
    end
  end
  for _, take in ipairs(takes) do
    refusal = refusal or park_all(take.parks) or refusal_of('LTRIM', take[1], 0, -take[2] - 1)
    if not refusal then gone = gone + take[3] end
  end
  for i = gone + 1, refusal and #tags or 0 do
    pcall(release, tags[i])
  end
  return refusal
end
