-- The object of ours at the end of a message, ,"celeriac":{...}}; what a stock producer wrote has
-- none. It is flat but for the evidence of a dead letter, and quotes inside texts are escaped, so
-- nothing else looks like it. Messages are never decoded: they may be large, and cjson changes them.

-- A text with an object of ours, which has these entries; what is no JSON object stays as it is.
local function with_object(text, entries)
  local open = string.sub(text, -1) == '}' and string.sub(text, 1, -2) or string.match(text, '^(.*)}%s*$')
  return open and (open .. ',"celeriac":{' .. entries .. '}}') or text
end

-- The object without evidence, from its comma on; nil for none. Its last bytes are enough.
local function object_in(text)
  return string.match(string.sub(text, -300), ',"celeriac":{[^{}]*}}$')
end

-- A text with one entry more in that object.
local function with_entry(text, entry)
  if object_in(text) then return string.sub(text, 1, -3) .. ',' .. entry .. '}}' end
  return with_object(text, entry)
end

-- A text marked as one that may have run in part.
local function redelivered(text)
  local object = object_in(text)
  if object and string.find(object, '"redelivered":true', 1, true) then return text end
  return with_entry(text, '"redelivered":true')
end
