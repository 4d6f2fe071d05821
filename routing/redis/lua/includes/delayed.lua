-- A delayed message is a member of a sorted set, by its due time, and a field of a hash.

-- The sequence comes first, so that of messages due together the older one leaves first.
local function member_of(sequence, id)
  return string.format('%016.0f#', sequence) .. id
end

-- The value is "<length of the list's name>:<name><payload>".
local function value_of(list, payload)
  return #list .. ':' .. list .. payload
end

local function split(value)
  local digits = string.match(value, '^%d+')
  local from = #digits + 2 + tonumber(digits)
  return string.sub(value, #digits + 2, from - 1), string.sub(value, from)
end

-- A number for each of so many messages that are delayed; the last one is returned. Called before
-- anything is taken out: the key may hold something else.
local function numbers(key, count)
  local answer = redis.pcall('INCRBY', key, count)
  if type(answer) == 'table' then return nil, {err = answer.err .. ' (key ' .. key .. ', expected a number)'} end
  return answer
end

-- When the first of them is due, nil for none.
local function first_due(delayed)
  return tonumber(redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2])
end
