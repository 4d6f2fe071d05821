-- The object of ours at the end of a message, ,"celeriac":{...}}; what a stock producer wrote has
-- none. It is flat but for the evidence of a dead letter, and quotes inside strings are escaped, so
-- nothing else looks like it. Messages are never decoded: they may be large, and cjson changes them.

-- The end of a payload, in which that object is: with every entry it has less.
local function end_of(payload) return string.sub(payload, -450) end

-- The object without evidence, from its comma on; nil for none.
local function object_in(payload)
  return string.match(end_of(payload), ',"celeriac":{[^{}]*}}$')
end

-- The gate that a producer has marked a message for, nil for none.
local function gate_in(payload)
  if not string.find(payload, '"gate":"', -450, true) then return nil end
  return string.match(end_of(payload), ',"celeriac":{[^{}]*"gate":"([^"]*)"[^{}]*}}$')
end

-- A payload with an object of ours, which has these entries; what is no JSON object stays as it is. Its
-- gate goes along.
local function with_object(payload, entries)
  local gate = gate_in(payload)
  if gate then
    return string.sub(payload, 1, -#object_in(payload) - 1) .. ',"celeriac":{' .. entries .. ',"gate":"' .. gate .. '"}}'
  end
  local open = string.sub(payload, -1) == '}' and string.sub(payload, 1, -2) or string.match(payload, '^(.*)}%s*$')
  return open and (open .. ',"celeriac":{' .. entries .. '}}') or payload
end

-- When a payload was pushed, by the server's clock; nil when its producer was stock.
local function stamp_of(payload)
  return tonumber(string.match(end_of(payload), '.*,"celeriac":{"at":(%d+)'))
end

-- A payload with one entry more in that object.
local function with_entry(payload, entry)
  if object_in(payload) then return string.sub(payload, 1, -3) .. ',' .. entry .. '}}' end
  return with_object(payload, entry)
end

-- A payload with an entry of that object in the place of an earlier one, which this pattern finds.
local function with_latest(payload, pattern, entry)
  local object = object_in(payload)
  if not object or not string.find(object, pattern) then return with_entry(payload, entry) end
  return string.sub(payload, 1, -#object - 1) .. string.gsub(object, pattern, function() return entry end)
end

-- A number in that object, 0 for none.
local function count_in(payload, name)
  local object = object_in(payload)
  return tonumber(object and string.match(object, '"' .. name .. '":(%d+)') or 0)
end

-- A payload marked as one that may have run in part.
local function redelivered(payload)
  local object = object_in(payload)
  if object and string.find(object, '"redelivered":true', 1, true) then return payload end
  return with_entry(payload, '"redelivered":true')
end
