-- Beside the bell of a queue whose work may not start now stands a flag: what comes there wakes nobody.
local SHUT = '\6\22shut'

-- Wakes a worker that waits for a queue; an hour is longer than any worker is away.
local function ring(bell)
  if redis.call('EXISTS', bell, bell .. SHUT) == 0 then
    redis.call('LPUSH', bell, '1')
    redis.call('PEXPIRE', bell, 3600000)
  end
end
