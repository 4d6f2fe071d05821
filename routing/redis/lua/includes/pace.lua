-- How fast a queue is worked off: what had ended at two moments, each some seconds before the next.
local SAMPLE_MS, STALE_MS = 5000, 20000
local ENDED = {'done', 'failed', 'retried', 'revoked', 'expired', 'rejected', 'ignored', 'started', 'dead'}

-- Milliseconds from one ending to the next, lately; 0 when nobody knows. Notes the present moment when
-- the last one that was noted is some seconds old.
local function pace_of(ledger, pace)
  local ended = 0
  for _, count in ipairs(redis.call('HMGET', ledger, unpack(ENDED))) do ended = ended + (count or 0) end
  local noted = redis.call('HMGET', pace, 'at', 'ended', 'last_at', 'last_ended')
  local at, before, last_at, last = tonumber(noted[1] or now), tonumber(noted[2] or ended), noted[3], noted[4]
  local since_last = now - tonumber(last_at or 0)
  if since_last >= STALE_MS or ended < before then
    at, before, last_at, last = now, ended, whole(now), whole(ended)
  end
  if since_last >= SAMPLE_MS then
    redis.call('HSET', pace, 'at', last_at, 'ended', last, 'last_at', whole(now), 'last_ended', whole(ended))
  end
  return ended > before and (now - at) / (ended - before) or 0
end
