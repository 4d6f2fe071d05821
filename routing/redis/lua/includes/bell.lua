-- Wakes a worker that waits for a queue; an hour is longer than any worker is away.
local function ring(bell)
  if redis.call('EXISTS', bell) == 0 then
    redis.call('LPUSH', bell, '1')
    redis.call('PEXPIRE', bell, 3600000)
  end
end
