-- Delayed messages that one call makes ready, and their bytes: a moment at which very many are due
-- must not hold the server, and the caller comes again at once.
local promotions, promotion_bytes = 500, MOST_BYTES

-- Notes a message among those that go to one end of one list.
local function add_to(pushes, member, due_ms, value)
  local list, payload = split(value)
  if string.sub(payload, -1) ~= '}' then payload = string.match(payload, '^(.*})%s*$') or payload end
  local object = object_in(payload)
  local is_back = object and (string.find(object, '"returned":%d+') or string.find(object, '"rounds":%d+'))
  if not is_back and string.sub(payload, -1) == '}' then
    payload = with_object(payload, '"at":' .. due_ms .. ',"due":' .. due_ms)
  end
  local command = is_back and 'RPUSH' or 'LPUSH'
  local push = pushes[command .. list]
    or {command = command, list = list, payloads = {}, members = {}, scores = {}, bytes = 0}
  pushes[command .. list] = push
  -- Each push to the front passes the one before it.
  table.insert(push.payloads, is_back and 1 or #push.payloads + 1, payload)
  table.insert(push.members, member)
  table.insert(push.scores, due_ms)
  table.insert(push.scores, member)
  push.bytes = push.bytes + #payload
end

-- Appends what is due to the ready lists, first due first; returns what the server refuses, which
-- stays delayed. What has no payload (it was evicted, or never came) is malformed. Age counts from the
-- due time, and the mark tells the worker that no clock of its own is to be asked again. What was
-- requeued waited in line before: it goes to the front, with its own age and marks.
local function promote(delayed, payloads, ledger)
  local members, dues, pushes = {}, {}, {}
  local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'WITHSCORES', 'LIMIT', 0, promotions)
  for i = 1, #due, 2 do
    members[#members + 1], dues[#dues + 1] = due[i], whole(due[i + 1])
  end
  -- One first, to learn the size; then in steps, as the next ones may be a thousand times as big.
  local n, size = 0, 0
  while n < #members and size < promotion_bytes do
    local want = size > 0 and math.floor((promotion_bytes - size) * n / size) or n
    want = math.max(1, math.min(#members - n, want, n, 8))
    for _, value in ipairs(redis.call('HMGET', payloads, unpack(members, n + 1, n + want))) do
      if size >= promotion_bytes then break end
      n = n + 1
      if value then
        size = size + #value
        add_to(pushes, members[n], dues[n], value)
      else
        redis.call('ZREM', delayed, members[n])
      end
    end
  end
  promotion_bytes = promotion_bytes - size
  for _, push in pairs(pushes) do
    redis.call('ZREM', delayed, unpack(push.members))
    local answer = redis.pcall(push.command, push.list, unpack(push.payloads))
    if type(answer) == 'table' then
      redis.pcall('ZADD', delayed, unpack(push.scores))
      return answer
    end
    redis.call('HDEL', payloads, unpack(push.members))
    if ledger ~= KEYS[1] then redis.call('HINCRBY', ledger, 'bytes', push.bytes) end
    promotions = promotions - #push.members
  end
end
