
-- From here on: an application's own event, as JSON.

local MAX_LABEL = 200
local RESERVED = {
    closed = true, connected = true, dropped = true, gap = true, keepalive = true, reconnect = true
}

local function refuse(sentence)
  return redis.error_reply('BADEVENT ' .. sentence)
end

local decoded, document = pcall(cjson.decode, ARGV[1])
if not decoded or type(document) ~= 'table' then return refuse('This is no JSON object.') end

local raw = redis.call('GET', prefix .. 'rules')
if not raw then return redis.error_reply('NOCLOCK No node has been here: start one first.') end
local rules = cjson.decode(raw)

-- Whether a name matches a pattern: literal segments, * for one, ** at the end for any number.
local function matches(pattern, name)
  local lua = string.gsub(pattern, '[%-%.%+%%]', '%%%0')
  if lua == '**' then return true end
  local open = string.match(lua, '^(.*)%%%.%*%*$')
  local function literal(part) return (string.gsub(part, '%*', '[^.]+')) end
  if open then return string.find(name .. '.', '^' .. literal(open) .. '%.') ~= nil end
  return string.find(name, '^' .. literal(lua) .. '$') ~= nil
end

local function rule(channel)
  for _, one in ipairs(rules.channels) do
    if matches(one[1], channel) or one[1] == 'user:*' and string.sub(channel, 1, 5) == 'user:' then
      return {channel = channel, events = one[2], bytes = one[3], ms = one[4]}
    end
  end
end

local function is_label(value)
  return type(value) == 'string' and #value > 0 and #value <= MAX_LABEL
    and not string.find(value, '[%z\r\n]')
end

-- The channel of a user: percent-encoded where the id is no legal name.
local function user_channel(user)
  local encoded = string.gsub(user, '[^%w_%-%.:/@~%+]', function(byte)
    return string.format('%%%02X', string.byte(byte))
  end)
  if string.find('.' .. user .. '.', '..', 1, true) then encoded = string.gsub(encoded, '%.', '%%2E') end
  return 'user:' .. encoded
end

local known = {v = 1, channel = 1, channels = 1, user = 1, broadcast = 1, data = 1, event = 1,
  retry = 1, key = 1, id = 1, ['end'] = 1}
for name, value in pairs(document) do
  if not known[name] then return refuse('An event has no member ' .. tostring(name) .. '.') end
  if value == cjson.null and name ~= 'data' then document[name] = nil end
end
if document.v ~= nil and document.v ~= 1 then return refuse('The format of events is v 1.') end
for _, name in ipairs({'broadcast', 'end'}) do
  if document[name] ~= nil and type(document[name]) ~= 'boolean' then
    return refuse(name .. ' is true or false.')
  end
end
local names, targets = document.channels or {document.channel}, 0
for _, name in ipairs({'channel', 'channels', 'user'}) do
  if document[name] ~= nil then targets = targets + 1 end
end
if document.broadcast then targets = targets + 1 end
if targets ~= 1 or type(names) ~= 'table'
  or not (#names > 0 or type(document.user) == 'string' and #document.user > 0
    or document.broadcast == true) then
  return refuse('An event names where it goes by exactly one of channel, channels, user and broadcast.')
end
local event = {token = '', targets = {}, dedupe_ms = rules.dedupe_ms,
  ended = document['end'] == true and '1' or '0'}
local seen = {}
for _, name in ipairs(names) do
  if type(name) ~= 'string' or #name > MAX_LABEL or not string.find(name, '^[%w_%-%.:/@~%%%+]+$')
    or string.find('.' .. name .. '.', '..', 1, true) or name == 'global'
    or name == 'gateway:ops' or string.sub(name, 1, 5) == 'user:' then
    return refuse('A channel is 1 to 200 of A-Z a-z 0-9 _ - . : / @ ~ % + and not reserved.')
  end
  if string.sub(name, 1, 7) == 'stream:' then
    return refuse('Nobody publishes to ' .. name .. ' but the gateway: the events of a token stream'
      .. ' go to POST /streams/<id>/events.')
  end
  if not seen[name] then
    seen[name] = true
    event.targets[#event.targets + 1] = rule(name)
  end
end
local own = document.user and user_channel(document.user) or document.broadcast and 'global'
if own then
  if #own > MAX_LABEL then return refuse('The user id is too long.') end
  if event.ended == '1' then return refuse('What goes to a user or to everybody has no end.') end
  seen[own] = true
  event.targets[1] = rule(own)
end
if #event.targets > rules.max_channels then return refuse('An event goes to too many channels.') end
for _, name in ipairs({'event', 'key', 'id'}) do
  if document[name] ~= nil and not is_label(document[name]) then
    return refuse(name .. ' has 1 to 200 bytes and no line break.')
  end
end
if RESERVED[document.event] then
  return refuse('The event type ' .. document.event .. " is the gateway's own.")
end
local data = document.data
if data == nil then
  if event.ended ~= '1' then return refuse('An event has data; this one has none.') end
  data = ''
elseif type(data) ~= 'string' then
  return refuse('data is a string here; give other data as the JSON text that it is to be.')
end
local retry = document.retry
if retry ~= nil and (type(retry) ~= 'number' or retry < 0 or retry > 2147483647 or retry % 1 ~= 0) then
  return refuse('retry is a whole number of milliseconds.')
end

local lines = {}
if document.event then lines[#lines + 1] = 'event: ' .. document.event end
if retry then lines[#lines + 1] = string.format('retry: %.0f', retry) end
data = string.gsub(string.gsub(data, '\r\n', '\n'), '\r', '\n')
for line in string.gmatch(data .. '\n', '([^\n]*)\n') do lines[#lines + 1] = 'data: ' .. line end
local body = table.concat(lines, '\n') .. '\n\n'
if #body > rules.max_event_bytes then return refuse('The event is too large.') end

if document.id then
  local sorted = {}
  for name in pairs(seen) do sorted[#sorted + 1] = name end
  table.sort(sorted)
  event.token = 'j' .. redis.sha1hex('application\n' .. document.id .. '\n' .. table.concat(sorted, '\n'))
end
local listed = {}
for _, target in ipairs(event.targets) do listed[#listed + 1] = target.channel end
local told = #listed == 1 and '-' or table.concat(listed, ',')
event.rest = event.ended .. ' ' .. told .. ' ' .. (document.key or '') .. '\n' .. body

begin(0)
local result = take(event)
finish()
if result == 'E' then return redis.error_reply('ENDED A channel of the event has ended.') end
if string.sub(result, 1, 1) == 'X' then return redis.error_reply('REFUSED ' .. string.sub(result, 2)) end
return (string.gsub(result, '^=', ''))
