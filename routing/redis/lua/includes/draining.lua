-- "1" when a queue that is draining takes none of the new messages, which are then counted as refused;
-- else "". Work that was accepted before goes in.
local function draining(flag)
  if terms == 'exempt' or redis.call('EXISTS', flag) == 0 then return '' end
  if count > 0 and ledger ~= KEYS[1] then redis.call('HINCRBY', ledger, 'refused', count) end
  return '1'
end
