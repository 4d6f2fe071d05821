-- The server's time: milliseconds as a number, and seconds with a fraction as text.
local TIME = redis.call('TIME')
local now = tonumber(TIME[1]) * 1000 + math.floor(tonumber(TIME[2]) / 1000)
local now_seconds = TIME[1] .. '.' .. string.format('%06d', tonumber(TIME[2]))

-- A whole number as text: Lua would write a large one with an exponent.
local function whole(number)
  return string.format('%.0f', number)
end
