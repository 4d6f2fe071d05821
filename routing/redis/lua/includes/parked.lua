-- The lists of what is parked of a queue's ready lists, which are KEYS[from] to KEYS[to], for a gate.
local function parked_lists(parked, gate, from, to)
  local lists = {}
  for k = from, to do lists[#lists + 1] = parked .. #KEYS[k] .. ':' .. KEYS[k] .. gate end
  return lists
end
