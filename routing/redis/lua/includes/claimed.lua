-- What a full queue keeps for a group that waits, in messages and bytes; 0 for the group itself.
local function claimed_by_others(key, who)
  local kept = redis.call('HMGET', key, 'who', 'messages', 'bytes')
  if not kept[1] or kept[1] == who then return 0, 0 end
  return tonumber(kept[2]) or 0, tonumber(kept[3]) or 0
end
