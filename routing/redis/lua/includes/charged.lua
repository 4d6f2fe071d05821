-- A text that stands in the object of ours as it is: what JSON or a pattern would trip over is
-- replaced, and it is cut, so that the object with every entry has less than 450 bytes.
local function plain(text)
  local cut = string.sub(text, 1, 150)
  -- Not in the middle of a character.
  if string.find(text, '^[\128-\191]', 151) then
    cut = string.gsub(cut, '[\192-\255]?[\128-\191]*$', '')
  end
  return (string.gsub(string.gsub(cut, '"', "'"), '[%c\\{}]', ' '))
end

-- A payload that notes one more delivery that killed a process, and why.
local function charged(payload, why)
  local count = whole(count_in(payload, 'deliveries') + 1)
  local entries = '"deliveries":' .. count .. ',"charged":"' .. plain(why) .. '"'
  return with_latest(payload, '"deliveries":%d+,"charged":"[^"]*"', entries)
end
