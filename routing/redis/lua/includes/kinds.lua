-- Asked before the first write: a script that a key of another type stops half way loses messages.
local READS = {list = 'LLEN', hash = 'HLEN', zset = 'ZCARD', string = 'GET'}

-- Says which of these keys cannot be used as such a one, as an error to reply with; nil for none, and
-- then what each was asked for: its length, or its text.
local function misused(kind, ...)
  local answers = {}
  for i, key in ipairs({...}) do
    local answer = redis.pcall(READS[kind], key)
    if type(answer) == 'table' then
      return {err = answer.err .. ' (key ' .. key .. ', expected a ' .. kind .. ')'}
    end
    answers[i] = answer
  end
  return nil, answers
end
