-- store: write the states of tasks into a result backend, unless what is there is final; tell who
-- waits for them.
--
-- KEYS:  then the result key of each task
-- ARGV:  then per result: its value, seconds for which it is kept (0 for ever),
--        "1" when its state is final, the stored value that it may replace, or "" for any
-- Reply: {{position, stored value} for each result whose stored state only its serializer can tell,
--         {position, error} for each result that can never be stored};
--        neither of them was written

local unread, failed = {}, {}
for i, key in ipairs(KEYS) do
  local at = 4 * i - 3
  local value, seconds, final, known = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  -- The state comes first in a value, so its head is enough, however large the result is.
  local head = redis.pcall('GETRANGE', key, 0, 63)
  local status = type(head) == 'string' and string.match(head, '^{"status": "([^"]*)"')
  if type(head) == 'table' then
    failed[#failed + 1] = {i, head.err}
  elseif head ~= '' and not status and (known == '' or redis.call('GET', key) ~= known) then
    unread[#unread + 1] = {i, redis.call('GET', key)}
  elseif status == 'SUCCESS' or (final == '' and (status == 'FAILURE' or status == 'REVOKED')) then
    -- It has ended: success stays, and no other ending is taken back.
  else
    if seconds == '0' then
      redis.call('SET', key, value)
    else
      redis.call('SET', key, value, 'EX', seconds)
    end
    redis.call('PUBLISH', key, value)
  end
end
return {unread, failed}
