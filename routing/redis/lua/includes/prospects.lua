-- What lets a refused producer guess when there is room: how old the work is that waits, how fast it is
-- worked off, and by how many. Adds it to the reply of a push that refused some.
local function prospects(refused, reply)
  if refused == 0 then return reply end
  for k = 10, #KEYS do
    local oldest = reply[5] == 0 and redis.call('LINDEX', KEYS[k], -1)
    local at = oldest and stamp_of(oldest)
    if at then reply[5] = math.max(0, now - at) end
  end
  reply[7] = math.floor(pace_of(KEYS[3], KEYS[7]) * 1000)
  reply[8] = redis.call('ZCOUNT', KEYS[8], whole(now), '+inf')
  return reply
end
